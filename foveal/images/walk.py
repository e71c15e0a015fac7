"""Which images are in a folder: one walk with one rule, for training and for prediction.

Folders are searched to the bottom. Links to folders are followed, but no folder is searched twice: a loop does no harm,
and an image has one path. Hidden files and folders, and those that the system or other programs make (``@eaDir``,
``__MACOSX``), are left out everywhere. What is left out is counted by reason.

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

# A hundred thousand Path objects take seconds.
# ruff: noqa: PTH112, PTH114, PTH118, PTH206, PTH207

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from foveal.formats import BY_NAME, SUFFIXES

HIDDEN = "hidden"
FOREIGN = "made by the system or another program"
UNKNOWN = "suffix of no image format"
ONLY_BY_NAME = "suffix with other uses too; name the file to read it"
DEAD_LINK = "link to nothing"
SPECIAL = "no regular file"
AGAIN = "link to a folder that is searched already"

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


_ESCAPED = re.compile(r"[\ud800-\udfff]|\\ud[89a-f]")


class LeftOut(dict[str, tuple[int, str]]):
    """Reason to how many files and folders were left out for it, and the path of the first of them."""

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Count ``path``, the first of ``count``."""
        before, first = self.get(reason, (0, path))
        self[reason] = (before + count, first)

    def join(self, other: LeftOut) -> None:
        """Count what another walk left out."""
        for reason, (count, first) in other.items():
            self.add(reason, first, count)

    def lines(self) -> list[str]:
        """A line for each reason, for people."""
        return [
            f"left out {count:,} ({reason}): {as_text(first)}{', ...' if count > 1 else ''}"
            for reason, (count, first) in self.items()
        ]


@dataclass
class FoundFiles:
    """What a walk found.

    Attributes:
        paths: of the images, sorted folder by folder.
        left_out: what is there besides.
        unreadable: (path, one sentence) of each folder that could not be searched.
    """

    paths: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def join(self, other: FoundFiles) -> None:
        """Take in what another walk found, after one's own."""
        self.paths += other.paths
        self.left_out.join(other.left_out)
        self.unreadable += other.unreadable


def walk(top: str | os.PathLike, suffixes: tuple[str, ...] = SUFFIXES) -> FoundFiles:
    """Find the images in a folder and the folders in it.

    Args:
        top: the folder; it may be hidden itself, or a link.
        suffixes: of the files to find, in lower case; ``("",)`` for all.
    """
    return search([top], Path(os.path.realpath(top)).parents, suffixes)


def search(
    tops: Iterable[str | os.PathLike], above: Iterable[Path], suffixes: tuple[str, ...] = SUFFIXES
) -> FoundFiles:
    """`walk` through several folders, none of them twice.

    Args:
        tops: the folders.
        above: real paths of folders that links may lead to but that are not searched, because they hold the others.
        suffixes: see `walk`.
    """
    found = FoundFiles()
    starts = [(os.fspath(top), os.path.realpath(top)) for top in tops]
    searched = set(map(str, above))
    # Links wait until everything else is searched: of two paths to an image the one without a link is found.
    folders = [start for start in reversed(starts) if not os.path.islink(start[0])]
    links = deque(start for start in starts if start not in folders)
    while folders or links:
        folder, real = folders.pop() if folders else links.popleft()
        if real in searched:
            found.left_out.add(AGAIN, folder)
            continue
        searched.add(real)
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable.append(
                (folder, f"{folder}: the folder cannot be searched ({error.strerror}); mend that or name what is in it")
            )
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
    found.paths.sort(key=lambda path: path.split(os.sep))
    return found


def match(pattern: str) -> FoundFiles:
    """Find files by a pattern such as ``scans/**/*.svs``, in which ``**`` stands for any number of folders.

    Of folders that the pattern matches, the images in them are found. A file that it matches may have any suffix,
    unless the pattern says no more of its name than ``*``.
    """
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    suffixes = SUFFIXES if set(parts[-1]) <= {"*"} else ("",)
    recursive = "**" in parts
    # Up to a ** a pattern cannot run in circles.
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
    return found


def _fits(names: list[str], pattern: list[str]) -> bool:
    """Whether the names that a path is made of fit those of a pattern."""

    def past_stars(places: set[int]) -> set[int]:
        for place, part in enumerate(pattern):
            if part == "**" and place in places:
                places.add(place + 1)
        return places

    # Which parts of the pattern may be the next to fit: each name keeps a ** or uses another part up.
    places = past_stars({0})
    for name in names:
        fitting = [
            p for p in places if p < len(pattern) and (pattern[p] == "**" or fnmatch.fnmatchcase(name, pattern[p]))
        ]
        places = past_stars({p if pattern[p] == "**" else p + 1 for p in fitting})
    return len(pattern) in places


def set_apart(name: str) -> str | None:
    """Why a file or folder of this name is left out whatever it is, or None."""
    if name.startswith("."):
        return HIDDEN
    return FOREIGN if name.lower() in _FOREIGN else None


def why_left_out(entry: os.DirEntry | Path, suffixes: tuple[str, ...] = SUFFIXES) -> str | None:
    """Why a file or folder in a folder is left out, or None.

    Args:
        entry: what is there.
        suffixes: see `walk`.
    """
    name = entry.name.lower()
    if (reason := set_apart(name)) or _is_folder(entry):
        return reason
    if not name.endswith(suffixes):
        return ONLY_BY_NAME if name.endswith(BY_NAME) else UNKNOWN
    try:
        if entry.is_file():
            return None
    except OSError:
        pass
    return DEAD_LINK if entry.is_symlink() else SPECIAL


def _is_folder(entry: os.DirEntry | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def as_text(path: str | os.PathLike) -> str:
    """A path as text that every format can hold, another one for every path.

    Bytes that are not UTF-8 become ``\\udcXX``. Where a name has such bytes, or already looks as if it had, its own
    backslashes are doubled.
    """
    text = os.fspath(path)
    if _ESCAPED.search(text):
        text = text.replace("\\", "\\\\")
    return text.encode("utf-8", "backslashreplace").decode()
