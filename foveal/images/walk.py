"""Search of folders for images, for training and prediction.

Folders are searched recursively. Links to folders are followed, but no folder is searched twice, so loops of links end
and each image has one path. Hidden files and folders, and those of the system and other programs (``@eaDir``,
``__MACOSX``), are skipped. The skipped files and folders are counted by reason.

An OME-Zarr folder is one image, and is not searched. Of the files of a DICOM slide, the one of the finest level is
found.

Example:
    >>> import pathlib, tempfile
    >>> top = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("b.tif", "a.JPG", "notes.txt", ".DS_Store"): (top / name).touch()
    >>> found = walk(top)
    >>> [pathlib.Path(path).name for path in found.paths]
    ['a.JPG', 'b.tif']
    >>> {reason: count for reason, (count, example) in found.left_out.items()}
    {'hidden': 1, 'suffix of no image format': 1}
"""

# os.path is used for speed: creating 100,000 Path objects takes seconds.
# ruff: noqa: PTH112, PTH114, PTH118, PTH206, PTH207

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from foveal.formats import BY_NAME, FOLDERS, SUFFIXES
from foveal.images.unread import UNREAD

HIDDEN = "hidden"
FOREIGN = "made by the system or another program"
UNKNOWN = "suffix of no image format"
ONLY_BY_NAME = "suffix with other uses too; name the file to read it"
DEAD_LINK = "link to nothing"
SPECIAL = "no regular file"
AGAIN = "link to a folder that is searched already"
FEATURES = "features of tiles, no image"
OF_A_SLIDE = "another file of a DICOM slide"
NOT_READ = "format that is not read; name the file to be told what to do"

_FOREIGN = {
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
    "$recycle.bin",
    "network trash folder",
    "temporary items",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@tmp",
    "@sharebin",
    "@__thumb",
    "@recycle",
    "@recently-snapshot",
    "~snapshot",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "icon\r",
}


_NOT_READ = tuple(suffix for one in UNREAD for suffix in one.suffixes)
_ZARR = ("zarr.json", ".zattrs")
_ZARR_IMAGE = re.compile(rb'"(multiscales|plate|well|bioformats2raw\.layout)"')
_LONGEST = 1 << 20  # bytes of metadata that are searched
_ESCAPED = re.compile(r"[\ud800-\udfff]|\\ud[89a-f]")


class LeftOut(dict[str, tuple[int, str]]):
    """Skipped files and folders: by reason, their number and the path of the first one."""

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Add ``count`` files or folders, of which ``path`` is the first."""
        before, first = self.get(reason, (0, path))
        self[reason] = (before + count, first)

    def join(self, other: LeftOut) -> None:
        """Add the counts of another search."""
        for reason, (count, first) in other.items():
            self.add(reason, first, count)

    def lines(self) -> list[str]:
        """A line of text for each reason."""
        return [
            f"left out {count:,} ({reason}): {as_text(first)}{', ...' if count > 1 else ''}"
            for reason, (count, first) in self.items()
        ]


@dataclass
class FoundFiles:
    """Result of a search.

    Attributes:
        paths: paths of the images, sorted by folder.
        left_out: skipped files and folders.
        unreadable: (path, message) of each folder that could not be searched.
    """

    paths: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def join(self, other: FoundFiles) -> None:
        """Append the result of another search."""
        self.paths += other.paths
        self.left_out.join(other.left_out)
        self.unreadable += other.unreadable


def walk(top: str | os.PathLike, suffixes: tuple[str, ...] = SUFFIXES) -> FoundFiles:
    """Find the images in a folder and its subfolders.

    Args:
        top: the folder; it may be hidden or a link.
        suffixes: suffixes of the files to find, in lower case; ``("",)`` for all files.
    """
    return search([top], Path(os.path.realpath(top)).parents, suffixes)


def search(
    tops: Iterable[str | os.PathLike], above: Iterable[Path], suffixes: tuple[str, ...] = SUFFIXES
) -> FoundFiles:
    """Find the images in several folders, without searching a folder twice.

    Args:
        tops: the folders.
        above: real paths of parent folders, which are not searched if links lead to them.
        suffixes: see `walk`.
    """
    found = FoundFiles()
    starts = [(os.fspath(top), os.path.realpath(top)) for top in tops]
    searched = set(map(str, above))
    # Links are searched last, so that of two paths to an image the one without a link is found.
    folders = [start for start in reversed(starts) if not os.path.islink(start[0])]
    links = deque(start for start in starts if start not in folders)
    while folders or links:
        folder, real = folders.pop() if folders else links.popleft()
        if real in searched:
            found.left_out.add(AGAIN, folder)
            continue
        searched.add(real)
        if is_zarr(folder):
            if all(os.path.isdir(os.path.join(folder, name)) for name in ("features", "coords")):
                found.left_out.add(FEATURES, folder)
            else:
                found.paths.append(folder)
            continue
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            what = f"the folder cannot be searched ({error.strerror}); change its permissions or name its files"
            found.unreadable.append((folder, f"{folder}: {what}"))
            continue
        for entry in inside:
            if reason := why_left_out(entry, suffixes):
                found.left_out.add(reason, entry.path)
            elif not _is_folder(entry):
                found.paths.append(entry.path)
            elif entry.is_symlink():
                links.append((entry.path, os.path.realpath(entry.path)))
            else:
                folders.append((entry.path, os.path.join(real, entry.name)))
    _keep_one_of_each_slide(found)
    found.paths.sort(key=lambda path: path.split(os.sep))
    return found


def is_zarr(folder: str) -> bool:
    """Whether a folder is OME-Zarr: by its suffix, or by its metadata."""
    if folder.rstrip(os.sep).lower().endswith(FOLDERS):
        return True
    for name in _ZARR:
        with suppress(OSError), open(os.path.join(folder, name), "rb") as file:  # noqa: PTH123
            if _ZARR_IMAGE.search(file.read(_LONGEST)):
                return True
    return False


def _keep_one_of_each_slide(found: FoundFiles) -> None:
    """Leave out all but one file of each DICOM slide."""
    from foveal.images.dicom import one_of_each

    files = [path for path in found.paths if path.lower().endswith(".dcm")]
    if len(files) > 1:
        others = one_of_each(files)
        found.paths = [path for path in found.paths if path in others or not path.lower().endswith(".dcm")]
        for path in (path for same in others.values() for path in same):
            found.left_out.add(OF_A_SLIDE, path)


def match(pattern: str) -> FoundFiles:
    """Find files by a pattern such as ``scans/**/*.svs``, in which ``**`` matches any number of folders.

    Matching folders are searched for images. Matching files may have any suffix, unless the last part of the pattern is
    only ``*``.
    """
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    suffixes = SUFFIXES if set(parts[-1]) <= {"*"} else ("",)
    recursive = "**" in parts
    # The part before ** cannot match loops of links.
    start = os.sep.join([*parts[: parts.index("**")], ""]) if recursive else pattern
    files: list[str] = []
    folders: list[str] = []
    left_out = LeftOut()
    for path in sorted(glob.glob(start)) if start else [os.curdir]:
        if not recursive and (reason := why_left_out(Path(path), suffixes)):
            left_out.add(reason, path)
        else:
            (folders if os.path.isdir(path) else files).append(path)
    places = [Path(os.path.realpath(Path(path).absolute().parent)) for path in folders]
    found = search(
        folders, {above for place in places for above in (place, *place.parents)}, suffixes if recursive else SUFFIXES
    )
    if recursive:
        paths = found.paths if start else [path.removeprefix(os.path.join(os.curdir, "")) for path in found.paths]
        found.paths = [path for path in paths if _fits(path.split(os.sep), parts)]
    found.paths = files + found.paths
    found.left_out.join(left_out)
    _keep_one_of_each_slide(found)
    return found


def _fits(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match the parts of a pattern."""

    def past_stars(places: set[int]) -> set[int]:
        for place, part in enumerate(pattern):
            if part == "**" and place in places:
                places.add(place + 1)
        return places

    # Parts of the pattern that may match the next name. A name consumes its part, except for **.
    places = past_stars({0})
    for name in names:
        fitting = [
            p for p in places if p < len(pattern) and (pattern[p] == "**" or fnmatch.fnmatchcase(name, pattern[p]))
        ]
        places = past_stars({p if pattern[p] == "**" else p + 1 for p in fitting})
    return len(pattern) in places


def set_apart(name: str) -> str | None:
    """Reason to skip files and folders of this name, or None."""
    if name.startswith("."):
        return HIDDEN
    return FOREIGN if name.lower() in _FOREIGN else None


def why_left_out(entry: os.DirEntry | Path, suffixes: tuple[str, ...] = SUFFIXES) -> str | None:
    """Reason to skip a file or folder, or None.

    Args:
        entry: the file or folder.
        suffixes: see `walk`.
    """
    name = entry.name.lower()
    if (reason := set_apart(name)) or _is_folder(entry):
        return reason
    if not name.endswith(suffixes):
        return ONLY_BY_NAME if name.endswith(BY_NAME) else NOT_READ if name.endswith(_NOT_READ) else UNKNOWN
    try:
        if entry.is_file():
            return None
    except OSError:
        pass
    return DEAD_LINK if entry.is_symlink() else SPECIAL


def _is_folder(entry: os.DirEntry | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a folder without permission
        return False


def as_text(path: str | os.PathLike) -> str:
    """Convert a path to valid Unicode text, with a different text for every path.

    Bytes that are not UTF-8 become ``\\udcXX``. If the path has such bytes, or contains text of this form, its
    backslashes are doubled.
    """
    text = os.fspath(path)
    if _ESCAPED.search(text):
        text = text.replace("\\", "\\\\")
    return text.encode("utf-8", "backslashreplace").decode()
