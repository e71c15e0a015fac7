"""PNG: damaged pixels are refused, damaged metadata are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveal.errors import ImageError
from foveal.images import open_image
from tests.images.files import photo


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(pixels=None, **options):
    data = io.BytesIO()
    Image.fromarray(photo(48, 70) if pixels is None else pixels).save(data, "PNG", **options)
    return data.getvalue()


def _whole(path, data):
    path.write_bytes(data)
    image = open_image(path)
    return image.read(0, (0, 0, *image.size))


NOTES = {
    "text of two megabytes": _chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 2_000_000)),
    "international text of two megabytes": _chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"y" * 2_000_000)
    ),
    "long text": _chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000),
    "wrong checksum": _chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "broken compression": _chunk(b"zTXt", b"a\0\0nonsense"),
    "broken profile": _chunk(b"iCCP", b"icc\0\0nonsense"),
    "broken EXIF": _chunk(b"eXIf", b"MM\0*nonsense"),
    "broken gamma": _chunk(b"gAMA", b"\0"),
    "unknown": _chunk(b"vpAg", b"\0" * 9),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("note", NOTES)
def test_notes_are_no_reason_to_refuse_pixels(tmp_path, capfd, note, place):
    data = _png()
    at = 33 if place == "before" else len(data) - 12
    assert np.array_equal(_whole(tmp_path / "a.png", data[:at] + NOTES[note] + data[at:]), photo(48, 70))
    assert capfd.readouterr() == ("", "")


def _with_pixels(data, change):
    at = data.index(b"IDAT")
    length = struct.unpack(">I", data[at - 4 : at])[0]
    return (
        data[: at - 4]
        + b"".join(_chunk(b"IDAT", part) for part in change(data[at + 4 : at + 4 + length]))
        + data[at + 8 + length :]
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "damage", ["wrong Adler-32", "wrong Adler-32 in a chunk of its own", "wrong checksum", "no Adler-32", "cut"]
)
def test_damaged_pixels_are_refused(tmp_path, damage, interlaced):
    data = _png()
    if interlaced:
        rows = b"".join(
            b"\0" + photo(8, 8)[y::dy, x::dx][i].tobytes()
            for y, x, dy, dx in (
                (0, 0, 8, 8),
                (0, 4, 8, 8),
                (4, 0, 8, 4),
                (0, 2, 4, 4),
                (2, 0, 4, 2),
                (0, 1, 2, 2),
                (1, 0, 2, 1),
            )
            for i in range(-(-(8 - y) // dy))
        )
        head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1))
        data = data[:8] + head + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
        assert np.array_equal(_whole(tmp_path / "good.png", data), photo(8, 8))
    if damage == "wrong checksum":
        at = data.index(b"IDAT")
        data = data[: at + 20] + bytes([data[at + 20] ^ 1]) + data[at + 21 :]
    else:
        change = {
            "wrong Adler-32": lambda z: [z[:-1] + bytes([z[-1] ^ 1])],
            "wrong Adler-32 in a chunk of its own": lambda z: [z[:-4], z[-4:-1] + bytes([z[-1] ^ 1])],
            "no Adler-32": lambda z: [z[:-4]],
            "cut": lambda z: [z[: len(z) // 2]],
        }[damage]
        data = _with_pixels(data, change)
    with pytest.raises(ImageError, match=r"a\.png: cannot be decoded"):
        _whole(tmp_path / "a.png", data)


def test_pixels_in_many_chunks_and_more_data_than_pixels_are_read(tmp_path):
    data = _png()
    for change in (
        lambda z: [z[i : i + 7] for i in range(0, len(z), 7)],
        lambda z: [z, b""],
        lambda z: [z + b"trailing"],
    ):
        assert np.array_equal(_whole(tmp_path / "a.png", _with_pixels(data, change)), photo(48, 70))
    longer = photo(49, 70)
    assert np.array_equal(
        _whole(
            tmp_path / "a.png",
            data[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 70, 48, 8, 2, 0, 0, 0)) + _png(longer)[33:],
        ),
        longer[:48],
    )
    assert np.array_equal(_whole(tmp_path / "a.png", data[:-12]), photo(48, 70)), "no end chunk"


def test_a_damaged_palette_or_transparency_is_refused(tmp_path):
    image = Image.fromarray(photo(48, 70)).quantize(16)
    data = io.BytesIO()
    image.save(data, "PNG", transparency=3)
    for name in (b"PLTE", b"tRNS"):
        at = data.getvalue().index(name)
        damaged = bytearray(data.getvalue())
        damaged[at + 4] ^= 1
        with pytest.raises(ImageError, match=rf"checksum of its {name.decode()} chunk"):
            _whole(tmp_path / "a.png", bytes(damaged))


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _orientation_chunks(orientation):
    exif = _exif(orientation)
    hexadecimal = exif.hex().encode()
    profile = (
        b"\nexif\n%8d\n" % len(exif)
        + b"\n".join(hexadecimal[i : i + 72] for i in range(0, len(hexadecimal), 72))
        + b"\n"
    )
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    element = b"<rdf:Description><tiff:Orientation>%d</tiff:Orientation></rdf:Description>" % orientation
    return {
        "eXIf": _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")),
        "raw profile": _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "raw profile, not compressed": _chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        "XMP attribute": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "XMP element": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(element)),
    }


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("note", _orientation_chunks(1))
@pytest.mark.parametrize("place", ["before", "after"])
def test_orientation_is_obeyed_wherever_it_is(tmp_path, place, note, orientation):
    data = _png()
    at = 33 if place == "before" else len(data) - 12
    path = tmp_path / "a.png"
    seen = _whole(path, data[:at] + _orientation_chunks(orientation)[note] + data[at:])
    with Image.open(path) as image:
        image.load()
        assert np.array_equal(seen, np.asarray(ImageOps.exif_transpose(image)))
