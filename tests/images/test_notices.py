"""Warnings of libraries are logged with the path, once for each file; other warnings are unchanged."""

import logging
import struct
import threading
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.errors import ImageError
from foveal.images import as_image, notices, open_image
from tests.images.files import photo

WHOLE = np.array([[0, 0, 64, 64]], dtype=float)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    notices._log_once.cache_clear()


@pytest.fixture
def odd(tmp_path):
    """Function that writes a file for which a library issues a warning."""

    def make(kind: str, name: str = "odd"):
        pixels = photo(64, 64)
        path = tmp_path / f"{name}.{kind}"
        if kind == "tif":  # tifffile logs: the type cannot hold this value
            tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(42113, 2, 0, "-9999", True)])
        elif kind == "jp2":  # rasterio warns: no georeference
            pytest.importorskip("rasterio")
            Image.fromarray(pixels).save(path)
        else:  # Pillow would warn: truncated EXIF
            exif = b"II*\0" + struct.pack("<IH", 8, 5) + bytes(range(20))
            Image.fromarray(pixels).save(path, exif=b"Exif\0\0" + exif if kind == "jpg" else exif)
        return path

    return make


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_each_file_is_named_once(odd, caplog, recwarn):
    paths = [odd("tif", name) for name in ("first", "second")]
    for path in [*paths, *paths]:
        open_image(path).look(WHOLE, (8, 8))
    assert len(said(caplog)) == len(paths)
    for path, text in zip(paths, said(caplog), strict=True):
        assert text.startswith(f"{path}: ") and "\n" not in text
    assert not list(recwarn)


def test_warnings_of_one_line_are_named_for_each_file(caplog):
    """By default Python shows a warning of one line of code only once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for path in ("first.jpg", "second.jpg", "first.jpg"):
            with notices.noting(path):
                warnings.warn("odd  notes\n", stacklevel=1)
    assert said(caplog) == ["first.jpg: odd notes", "second.jpg: odd notes"]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_broken_notes_of_a_camera_are_no_news(odd, caplog, recwarn, kind):
    open_image(odd(kind)).look(WHOLE, (8, 8))
    assert not said(caplog) and not list(recwarn)


def test_images_in_memory_are_named_by_their_place(odd, caplog, recwarn):
    as_image(Image.open(odd("png")), name="[3]")
    assert len(said(caplog)) == 1 and said(caplog)[0].startswith("[3]: Corrupt EXIF data") and not list(recwarn)


def test_what_a_decoder_says_is_named_too(tmp_path, caplog):
    """libpng detects surplus data only when it decodes."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in photo(64, 64)) + bytes(999)
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "more.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    image = open_image(tmp_path / "more.png")
    assert not said(caplog)
    image.look(WHOLE, (8, 8))
    assert said(caplog) == [f"{tmp_path / 'more.png'}: PNG warning: IDAT: Too much image data"]


def test_a_picture_needs_no_place_on_earth(odd, caplog, recwarn):
    open_image(odd("jp2")).look(WHOLE, (8, 8))
    assert not said(caplog) and not list(recwarn)


def test_no_data_that_the_type_cannot_hold_is_no_arithmetic_warning(tmp_path, caplog, recwarn):
    tifffile.imwrite(tmp_path / "a.tif", photo(64, 64), photometric="rgb", extratags=[(42113, 2, 0, "nan", True)])
    open_image(tmp_path / "a.tif")
    assert not [text for text in said(caplog) if "cast" in text] and not list(recwarn)


def test_an_error_says_it_alone(odd, caplog):
    path = odd("tif")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ImageError, match=r"odd\.tif: "):
        open_image(path).look(WHOLE, (8, 8))
    assert not said(caplog)


def test_warnings_of_other_threads_are_left_alone(caplog):
    """Warnings of a thread that reads no file are unchanged while another thread reads."""
    reads, warned = threading.Event(), threading.Event()

    def read():
        with notices.noting("a.tif"):
            reads.set()
            assert warned.wait(10)
            logging.getLogger("tifffile").warning("odd")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shows = warnings.showwarning
        thread = threading.Thread(target=read)
        thread.start()
        assert reads.wait(10)
        warnings.warn("somebody else's", stacklevel=1)
        logging.getLogger("tifffile").warning("somebody else's")
        warned.set()
        thread.join()
        assert warnings.showwarning is shows
    assert [str(w.message) for w in caught] == ["somebody else's"]
    assert said(caplog) == ["somebody else's", "a.tif: odd"]


def test_levels_are_kept(caplog):
    """rasterio logs GDAL errors as INFO. Records keep their level, and DEBUG records are not collected."""
    with caplog.at_level(logging.DEBUG), notices.noting("a.tif"):
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            logging.getLogger("rasterio._env").log(level, "level %d", level)
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("rasterio._env", logging.DEBUG, "level 10"),
        ("foveal", logging.INFO, "a.tif: level 20"),
        ("foveal", logging.ERROR, "a.tif: level 40"),
    ]
