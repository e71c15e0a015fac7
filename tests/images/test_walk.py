"""Search of folders and patterns: images that are found, and skipped files counted by reason."""

import glob
import os
import pathlib

import pytest

from foveal.images.walk import (
    AGAIN,
    DEAD_LINK,
    FOREIGN,
    HIDDEN,
    NOT_READ,
    OF_A_SLIDE,
    ONLY_BY_NAME,
    SPECIAL,
    UNKNOWN,
    LeftOut,
    match,
    walk,
)


def make(root: pathlib.Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found_in(root: pathlib.Path, result) -> list[str]:
    return [os.path.relpath(path, root) for path in result.paths]


def test_images_are_found_to_the_bottom_folder_by_folder(tmp_path):
    make(tmp_path, "b.png", "a/2.JPG", "a/10.tif", "a.png", "a/b/c/deep.ome.tiff", "z/1.jfif")
    names = ["a/10.tif", "a/2.JPG", "a/b/c/deep.ome.tiff", "a.png", "b.png", "z/1.jfif"]
    assert found_in(tmp_path, walk(tmp_path)) == names
    assert not walk(tmp_path).left_out


def test_what_is_left_out_is_counted_by_reason_with_an_example(tmp_path):
    make(
        tmp_path,
        "1.png",
        "notes.txt",
        "deep/more.xml",
        "table.h5",
        ".DS_Store",
        "._1.png",
        ".cache/2.png",
        "@eaDir/1.png/thumb.jpg",
        "deep/__MACOSX/1.png",
        "Thumbs.db",
        "#recycle/3.png",
    )
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    result = walk(tmp_path)
    assert found_in(tmp_path, result) == ["1.png"]
    counts = {reason: count for reason, (count, _) in result.left_out.items()}
    assert counts == {UNKNOWN: 2, ONLY_BY_NAME: 1, HIDDEN: 3, FOREIGN: 4, DEAD_LINK: 2, SPECIAL: 1}
    assert result.left_out[SPECIAL] == (1, str(tmp_path / "pipe.png"))
    lines = result.left_out.lines()
    assert f"left out 1 (no regular file): {tmp_path / 'pipe.png'}" in lines
    assert any(line.startswith("left out 2 (suffix of no image format): ") and line.endswith(", ...") for line in lines)


def test_counts_of_several_walks_add_up():
    one, other = LeftOut(), LeftOut()
    one.add("hidden", "a")
    other.add("hidden", "b")
    other.add("special", "c", 5)
    one.join(other)
    assert one == {"hidden": (2, "a"), "special": (5, "c")}


@pytest.mark.parametrize(
    "links",
    [
        {"cat/up": ".."},
        {"cat/same": "."},
        {"cat/dog": "../dog", "dog/cat": "../cat"},
        {"all": ".", "cat/all": "../all"},
        {"abroad": "../elsewhere"},
        {"again": "cat", "more": "dog"},
        {"up": ".."},
        {"cat/further_up": "../.."},
    ],
)
def test_links_lead_to_every_image_once(tmp_path, links):
    root = tmp_path / "root"
    make(root, "cat/1.png", "cat/2.png", "dog/1.png")
    make(tmp_path, "elsewhere/3.png", "elsewhere/deep/4.png")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    for name, target in links.items():
        (root / name).symlink_to(target)
    result = walk(root)
    real = {os.path.realpath(path) for path in result.paths}
    assert len(real) == len(result.paths)
    own = ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert found_in(root, result) == (["abroad/3.png", "abroad/deep/4.png", *own] if "abroad" in links else own)
    assert result.left_out[AGAIN][0] == len(links)


def test_an_image_has_the_path_without_links_if_it_has_one(tmp_path):
    make(tmp_path, "z/1.png")
    (tmp_path / "a").symlink_to("z")
    assert found_in(tmp_path, walk(tmp_path)) == ["z/1.png"]


def test_a_folder_may_be_named_though_it_is_hidden_or_a_link(tmp_path):
    make(tmp_path, ".hidden/1.png", "@eaDir/1.png")
    (tmp_path / "link").symlink_to(".hidden")
    for name in (".hidden", "@eaDir", "link"):
        assert found_in(tmp_path, walk(tmp_path / name)) == [f"{name}/1.png"]


def test_links_to_files_are_images(tmp_path):
    make(tmp_path, "store/1.data", "set/x")
    (tmp_path / "set" / "1.png").symlink_to(tmp_path / "store" / "1.data")
    assert found_in(tmp_path, walk(tmp_path / "set")) == ["set/1.png"]


def test_a_folder_that_cannot_be_searched_is_named(tmp_path):
    make(tmp_path, "1.png")
    result = walk(tmp_path / "1.png")
    ((path, reason),) = result.unreadable
    assert path == str(tmp_path / "1.png") and reason.startswith(
        f"{path}: the folder cannot be searched (Not a directory)"
    )


def test_paths_longer_than_the_system_takes_are_named(tmp_path, monkeypatch):
    """Nested folders with a path that is too long; images above are still found."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "top/1.png")
    here = os.open(tmp_path / "top", os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    result = walk("top")
    assert found_in(pathlib.Path("top"), result) == ["1.png"]
    ((path, reason),) = result.unreadable
    assert "File name too long" in reason and path.startswith("top/ddd")


PATTERNS = [
    "*.png",
    "*",
    "deep/*",
    "**/*.png",
    "deep/**/*.png",
    "**/d*/*.png",
    "d*/**/?.png",
    "**/[12].*",
    "**/deep/**/4.png",
    "**",
    "deep/**",
    "**/**/*.png",
    "no*/**/*.png",
    "x**/*.png",
    "deep/more/*",
    "**/more/**/*.png",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [True, False])
def test_patterns_match_the_files_that_glob_matches(tmp_path, monkeypatch, pattern, absolute):
    make(tmp_path, "1.png", "2.png", "deep/3.png", "deep/more/4.png", "deep/more/deep/4.png", "dark/1.png", "x1/5.png")
    monkeypatch.chdir(tmp_path)
    pattern = f"{tmp_path}/{pattern}" if absolute else pattern
    matches = [pathlib.Path(path) for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    # Folders that match are searched, as where a shell expands the pattern.
    expected = {str(path) for path in matches if path.is_file()}
    expected |= {str(path) for top in matches if top.is_dir() for path in top.rglob("*.png")}
    found = match(pattern).paths
    assert set(found) == expected
    assert len(found) == len(expected)


def test_patterns_do_not_run_in_circles(tmp_path):
    make(tmp_path, "cat/1.png", "dog/2.png")
    for name, target in {"cat/up": "..", "dog/up": "..", "dog/cat": "../cat"}.items():
        (tmp_path / name).symlink_to(target)
    for pattern in ("**/*.png", "*/**/*.png", "*/*", "*", "**"):
        assert found_in(tmp_path, match(f"{tmp_path}/{pattern}")) == ["cat/1.png", "dog/2.png"], pattern


def test_patterns_leave_out_what_folders_leave_out(tmp_path):
    make(
        tmp_path,
        "1.png",
        "notes.txt",
        "Thumbs.db",
        "@eaDir/1.png",
        ".hidden/1.png",
        "deep/@eaDir/2.png",
        "deep/2.png",
        "deep/2.xyz",
    )
    assert found_in(tmp_path, match(f"{tmp_path}/*")) == ["1.png", "deep/2.png"]
    assert found_in(tmp_path, match(f"{tmp_path}/**")) == ["1.png", "deep/2.png"]
    assert match(f"{tmp_path}/*").left_out[FOREIGN][0] == 3
    # A pattern with a suffix selects files of that suffix.
    assert found_in(tmp_path, match(f"{tmp_path}/**/*.xyz")) == ["deep/2.xyz"]


def test_ome_zarr_folders_are_images(tmp_path):
    make(tmp_path, "1.png", "a.zarr/0/c/0/0/chunk.png", "deep/b.OME.ZARR/x.png", "idr/0/1.png", "group/0/1.png")
    (tmp_path / "idr" / ".zattrs").write_text('{"multiscales": []}')
    (tmp_path / "group" / "zarr.json").write_text('{"attributes": {}}')
    (tmp_path / "c.zarr").symlink_to("a.zarr")
    names = ["1.png", "a.zarr", "deep/b.OME.ZARR", "group/0/1.png", "idr"]
    assert found_in(tmp_path, walk(tmp_path)) == names
    assert found_in(tmp_path, match(f"{tmp_path}/**")) == names
    assert found_in(tmp_path, match(f"{tmp_path}/*.zarr")) == ["a.zarr"]
    assert found_in(tmp_path, match(f"{tmp_path}/**/*.ZARR")) == ["deep/b.OME.ZARR"]
    assert found_in(tmp_path, walk(tmp_path / "idr")) == ["idr"]


def test_one_file_of_each_dicom_slide_is_found(tmp_path):
    pytest.importorskip("pydicom")
    from tests.images.dicoms import new_series, write_instance, write_slide
    from tests.images.files import photo

    levels = [photo(64 // n, 80 // n) for n in (1, 2)]
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        series = write_slide(tmp_path / folder, levels)
        write_instance(tmp_path / folder / "a.dcm", levels[0][None], series, kind="LABEL")
    write_slide(tmp_path, levels, name="flat")
    write_instance(tmp_path / "ct.dcm", levels[0][None], new_series(), SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    make(tmp_path, "broken.dcm")
    result = walk(tmp_path)
    assert found_in(tmp_path, result) == ["1/slide0.dcm", "2/slide0.dcm", "broken.dcm", "ct.dcm", "flat0.dcm"]
    assert {reason: count for reason, (count, _) in result.left_out.items()} == {OF_A_SLIDE: 5}
    assert found_in(tmp_path, match(f"{tmp_path}/*.dcm")) == ["broken.dcm", "ct.dcm", "flat0.dcm"]


def test_formats_that_are_known_but_not_read_are_counted(tmp_path):
    make(tmp_path, "1.png", "a.isyntax", "b.VSI", "c.txt")
    assert walk(tmp_path).left_out == {
        NOT_READ: (2, str(tmp_path / "a.isyntax")),
        UNKNOWN: (1, str(tmp_path / "c.txt")),
    }
