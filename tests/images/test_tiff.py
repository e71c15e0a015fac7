"""Tiled TIFF: right pixels, and only the tiles that are needed, for all codecs, types and layouts."""

import logging
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

from foveal.errors import ImageError
from foveal.images import open_image
from tests.images.files import halve, photo, write_pyramid


def _as_seen(pixels):
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / np.iinfo(pixels.dtype).max


@pytest.mark.parametrize(
    "compression", [None, "packbits", "lzw", "deflate", "zstd", "lzma", "lerc", "webp", "jpeg2000", "jpegxl"]
)
def test_lossless_codecs_give_the_very_pixels(tmp_path, compression):
    pixels = photo(150, 200)
    options = {"compressionargs": {"lossless": True}} if compression in ("webp", "jpegxl") else {}
    if compression == "jpeg2000":
        options = {"compressionargs": {"reversible": True}}
    write_pyramid(tmp_path / "a.tif", pixels, 1, compression=compression, **options)
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(image.read(0, (0, 0, 150, 200)), pixels)
    assert torch.equal(image.look(np.array([[33, 50, 133, 180]]), (100, 130))[0], _as_seen(pixels[33:133, 50:180]))


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr", "minisblack"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_are_those_that_tifffile_decodes(tmp_path, photometric, subsampling):
    pixels = photo(150, 200, 1 if photometric == "minisblack" else 3)
    options = {"subsampling": subsampling} if photometric == "ycbcr" else {}
    write_pyramid(
        tmp_path / "a.tif",
        pixels,
        1,
        compression="jpeg",
        compressionargs={"level": 85},
        photometric=photometric,
        **options,
    )
    expected = tifffile.imread(tmp_path / "a.tif").reshape(pixels.shape)
    assert np.array_equal(open_image(tmp_path / "a.tif").read(0, (0, 0, 150, 200)), expected)


@pytest.mark.parametrize("compression", ["33003", "33005"])
def test_aperio_jpeg2000(tmp_path, compression):
    pixels = photo(128, 128)
    write_pyramid(tmp_path / "a.svs", pixels, 1, compression=int(compression), compressionargs={"reversible": True})
    assert np.array_equal(open_image(tmp_path / "a.svs").read(0, (0, 0, 128, 128)), pixels)


def _ycbcr(pixels):
    r, g, b = np.moveaxis(pixels.astype(float), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.rint(np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 2)).clip(0, 255).astype(np.uint8)


def _write_coded(path, tiles, compression, photometric, shape=(128, 128, 3), **options):
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(tiles),
            shape=shape,
            dtype=np.uint8,
            tile=(128, 128),
            compression=compression,
            photometric="rgb",
            metadata=None,
            **options,
        )
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[262].overwrite(photometric)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize(("compression", "photometric"), [(33003, 2), (33005, 2), (34712, 2), (34712, 6), (33003, 6)])
def test_jpeg2000_is_converted_once(tmp_path, compression, photometric, transform, boxed):
    """RGB, YCbCr according to the TIFF, or YCbCr by a component transform that the decoder inverts."""
    pixels = photo(128, 128)
    ycbcr = (compression == 33003 or photometric == 6) and not transform
    stored = _ycbcr(pixels) if ycbcr else pixels
    kind = "jp2" if boxed else "j2k"
    data = imagecodecs.jpeg2k_encode(stored, reversible=True, mct=transform, codecformat=kind)
    _write_coded(tmp_path / "a.tif", [data], compression, photometric)
    seen = open_image(tmp_path / "a.tif").read(0, (0, 0, 128, 128))
    assert np.abs(seen.astype(int) - pixels).max() <= (2 if ycbcr else 0)


def test_jpeg2000_with_fewer_colours_than_pixels_is_what_openslide_reads(tmp_path):
    rasterio, openslide = pytest.importorskip("rasterio"), pytest.importorskip("openslide")
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    options = {"driver": "JP2OpenJPEG", "height": 128, "width": 128, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "a.jp2", "w", YCBCR420="YES", REVERSIBLE="NO", QUALITY="100", **options) as file:
        file.colorinterp = [
            rasterio.enums.ColorInterp.red,
            rasterio.enums.ColorInterp.green,
            rasterio.enums.ColorInterp.blue,
        ]
        file.write(pixels.transpose(2, 0, 1))
    data = (tmp_path / "a.jp2").read_bytes()
    text = "Aperio Image Library v10.0.50\r\n128x128 [0,0 128x128] (128x128) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5"
    _write_coded(tmp_path / "a.svs", [data[data.index(b"\xff\x4f\xff\x51") :]], 33003, 2, description=text)
    expected = np.asarray(openslide.OpenSlide(tmp_path / "a.svs").read_region((0, 0), 0, (128, 128)))[..., :3]
    seen = open_image(tmp_path / "a.svs").read(0, (0, 0, 128, 128))
    assert np.abs(seen.astype(int) - expected).mean() < 1 and np.abs(seen.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bands", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_types_bands_and_byte_orders(tmp_path, dtype, bands, byteorder, predictor):
    pixels = photo(100, 90, bands, dtype)
    extra = {"extrasamples": [0]} if bands == 4 else {"extrasamples": [0] * 6} if bands == 7 else {}
    stored = pixels.astype(np.dtype(dtype).newbyteorder(byteorder))
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=byteorder) as writer:
        options = {
            "planarconfig": "contig" if bands > 1 else None,
            "photometric": "rgb" if bands in (3, 4) else "minisblack",
            **extra,
        }
        flat = stored[..., 0] if bands == 1 else stored
        writer.write(flat, tile=(32, 48), compression="deflate", predictor=predictor, metadata=None, **options)
    image = open_image(tmp_path / "a.tif")
    assert image.channels == bands and image.dtype == dtype
    assert np.array_equal(image.read(0, (-10, -5, 110, 90))[10:110, 5:], pixels)
    assert torch.allclose(image.look(np.array([[0, 0, 100, 90]]), (100, 90))[0], _as_seen(pixels), atol=1e-7)


def test_planes_apart(tmp_path):
    pixels = photo(100, 90)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels.transpose(2, 0, 1), tile=(32, 32), planarconfig="separate", photometric="rgb"
    )
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(image.read(0, (10, 10, 80, 90)), pixels[10:80, 10:90])


@pytest.mark.parametrize("subifds", [False, True])
def test_levels_as_pages_and_as_subifds(tmp_path, subifds):
    levels = write_pyramid(tmp_path / "a.tif", photo(500, 301), 4, subifds=subifds)
    image = open_image(tmp_path / "a.tif")
    assert image.level_sizes == tuple(level.shape[:2] for level in levels)
    for i, level in enumerate(levels):
        assert np.array_equal(image.read(i, (0, 0, *level.shape[:2])), level)


def test_slide_like_file_skips_thumbnail_label_and_macro(tmp_path):
    pixels = photo(512, 640)
    options = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        writer.write(pixels, tile=(64, 64), description="Aperio Image Library v1\n|AppMag = 20|MPP = 0.499", **options)
        writer.write(pixels[::4, ::4], **options)
        writer.write(halve(halve(pixels)), tile=(64, 64), **options)
        writer.write(photo(50, 200), subfiletype=1, **options)
        writer.write(photo(100, 300), subfiletype=9, **options)
    image = open_image(tmp_path / "a.svs")
    assert image.level_sizes == ((512, 640), (128, 160))
    assert image.metadata["mpp"] == 0.499 and "Aperio" in image.metadata["description"]


def test_coarsest_level_that_serves_is_read(tmp_path):
    levels = write_pyramid(tmp_path / "a.tif", photo(512, 512), 4)
    image = open_image(tmp_path / "a.tif")
    for side, level in ((64, 0), (120, 0), (128, 1), (200, 1), (256, 2), (510, 3), (512, 3)):
        image._kept.clear()
        before = image.tiles_decoded
        seen = image.look(np.array([[0, 0, side, side]]), (64, 64))
        scaled = -(-side >> level)
        assert image.tiles_decoded - before == (-(-scaled // 64)) ** 2
        if side == 64 << level:
            assert torch.equal(seen[0], _as_seen(levels[level][:64, :64]))


def test_each_tile_is_read_once_and_only_if_needed(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(512, 512), 1)
    tile = 64 * 64 * 3
    image = open_image(tmp_path / "a.tif")
    assert (image.bytes_read, image.tiles_decoded) == (0, 0)
    image.look(np.array([[0, 0, 64, 64], [32, 32, 96, 96], [0, 0, 96, 96], [600, 0, 700, 100]]), (64, 64))
    assert (image.bytes_read, image.tiles_decoded) == (4 * tile, 4)
    image.look(np.array([[0, 0, 64, 64]]), (32, 32))
    assert image.tiles_decoded == 4, "overlapping glimpses find the tile decoded"
    image.look(np.array([[448, 448, 560, 560]]), (112, 112))
    assert (image.bytes_read, image.tiles_decoded) == (5 * tile, 5)


def test_decoded_tiles_kept_are_bounded(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(1024, 2048), 1)
    image = open_image(tmp_path / "a.tif")
    image.look(np.array([[0, 0, 1024, 2048]]), (1024, 2048))
    assert sum(tile.nbytes for tile in image._kept.values()) == image._kept_bytes <= 4 << 20


def test_costs_do_not_grow_with_the_area(tmp_path):
    seen = {}
    for side, levels in ((256, 1), (2048, 4)):
        write_pyramid(tmp_path / f"{side}.tif", photo(side, side, 1), levels, tile=128)
        image = open_image(tmp_path / f"{side}.tif")
        image.look(np.array([[0, 0, side, side], [0, 0, side / 2, side / 2]]), (128, 128))
        seen[side] = (image.bytes_read, image.tiles_decoded)
    assert seen[2048][1] <= seen[256][1] + 1 and seen[2048][0] <= seen[256][0] + 128 * 128


def test_grey_is_repeated_where_three_are_asked_for(tmp_path):
    pixels = photo(64, 64, 1)
    write_pyramid(tmp_path / "a.tif", pixels, 1)
    seen = open_image(tmp_path / "a.tif", channels=3).look(
        np.array([[0, 0, 80, 64]]), (80, 64), fill=torch.tensor([0.1, 0.2, 0.3])
    )
    assert torch.equal(seen[0, :, :64], _as_seen(pixels).expand(3, -1, -1))
    assert torch.equal(seen[0, :, 64:], torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(3, 16, 64))


@pytest.mark.parametrize(("bands", "wanted"), [(4, 3), (3, 1), (3, 4)])
def test_wrong_number_of_bands(tmp_path, bands, wanted):
    write_pyramid(
        tmp_path / "a.tif", photo(64, 64, bands), 1, **({"extrasamples": [0]} if bands == 4 else {}), photometric="rgb"
    )
    with pytest.raises(ImageError, match=rf"a.tif: has {bands} bands where {wanted} are expected"):
        open_image(tmp_path / "a.tif", channels=wanted)


def test_floats_need_a_range_and_their_gaps_are_no_data(tmp_path):
    pixels = photo(64, 64, 1, np.float32) * 50 - 10
    pixels[:16] = np.nan
    write_pyramid(tmp_path / "a.tif", pixels, 1)
    with pytest.raises(
        ImageError, match=r"train with --data.value_range BLACK,WHITE, .* in Python by open_image\(..., value_range="
    ):
        open_image(tmp_path / "a.tif")
    seen = open_image(tmp_path / "a.tif", value_range=(-10, 30)).look(
        np.array([[0, 0, 64, 64]]), (64, 64), fill=torch.tensor([0.7])
    )[0]
    expected = torch.from_numpy(np.clip((pixels + 10) / 40, 0, 1)).permute(2, 0, 1)
    torch.testing.assert_close(seen[:, 16:], expected[:, 16:], atol=1e-6, rtol=0)
    assert torch.allclose(seen[:, :16], torch.tensor(0.7))


def test_unsigned_integers_may_have_a_narrower_range(tmp_path):
    write_pyramid(
        tmp_path / "a.tif", np.array([0, 1000, 3000, 65535], np.uint16).repeat(16).reshape(64, 1, 1).repeat(64, 1), 1
    )
    seen = open_image(tmp_path / "a.tif", value_range=(1000, 3000)).look(np.array([[0, 0, 64, 64]]), (64, 64))
    assert seen[0, 0, ::16, 0].tolist() == [0, 0, 1, 1]


def test_twelve_bits_span_twelve_bits(tmp_path):
    pixels = photo(64, 64, 1, np.uint16) >> 4
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        tile=(64, 64),
        compression="jpegxl",
        bitspersample=12,
        compressionargs={"lossless": True},
    )
    image = open_image(tmp_path / "a.tif")
    assert image.value_range[1] in (4095.0, 65535.0)
    if tifffile.TiffFile(tmp_path / "a.tif").pages[0].bitspersample == 12:
        assert image.value_range == (0.0, 4095.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_min_is_white(tmp_path, dtype):
    pixels = photo(64, 64, 1, dtype)
    write_pyramid(tmp_path / "a.tif", pixels, 1, photometric="miniswhite")
    seen = open_image(tmp_path / "a.tif").look(np.array([[0, 0, 64, 64]]), (64, 64))[0]
    assert torch.equal(seen, _as_seen(np.iinfo(dtype).max - pixels))


def test_palette(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    index = photo(64, 64, 1)
    tifffile.imwrite(tmp_path / "a.tif", index[..., 0], tile=(32, 32), photometric="palette", colormap=colours * 257)
    assert np.array_equal(open_image(tmp_path / "a.tif").read(0, (0, 0, 64, 64)), colours.T[index[..., 0]])


def test_cmyk(tmp_path):
    from PIL import Image

    ink = photo(64, 64, 4)
    tifffile.imwrite(tmp_path / "a.tif", ink, tile=(32, 32), photometric="separated", planarconfig="contig")
    image = open_image(tmp_path / "a.tif", channels=3)
    expected = np.asarray(Image.fromarray(ink, "CMYK").convert("RGB")).astype(int)
    assert np.abs(image.read(0, (0, 0, 64, 64)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("associated", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_composited_over_the_fill(tmp_path, dtype, associated):
    colours, alpha = photo(64, 64, 3, np.float64), np.repeat([[0.0], [0.25], [0.5], [1.0]], 16, 0) * np.ones((1, 64))
    top = np.iinfo(dtype).max
    stored = colours * alpha[..., None] if associated else colours
    pixels = np.rint(np.concatenate([stored, alpha[..., None]], -1) * top).astype(dtype)
    kind = "assocalpha" if associated else "unassalpha"
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, tile=(32, 32), photometric="rgb", extrasamples=[kind], planarconfig="contig"
    )
    image = open_image(tmp_path / "a.tif", channels=3)
    fill = torch.tensor([0.2, 0.5, 0.8])
    seen = image.look(np.array([[0, 0, 64, 64]]), (64, 64), fill=fill)[0]
    expected = colours * alpha[..., None] + fill.double().numpy() * (1 - alpha[..., None])
    torch.testing.assert_close(
        seen.double(), torch.from_numpy(expected).permute(2, 0, 1), atol=3 / 255 if dtype == np.uint8 else 1e-4, rtol=0
    )
    assert torch.equal(seen[:, :16], fill[:, None, None].expand(3, 16, 64))


def test_no_data_and_absent_tiles_are_fill(tmp_path):
    pixels = photo(128, 128, 3, np.uint16).clip(1)
    pixels[:20, :30] = 0
    tiles = [pixels[:64, :64], None, pixels[64:, :64], pixels[64:, 64:]]
    options = {"shape": (128, 128, 3), "dtype": np.uint16, "tile": (64, 64), "photometric": "rgb", "metadata": None}
    for name, tags in (
        ("declared.tif", [(42113, 2, None, "0", True)]),
        ("not.tif", []),
        ("unfit.tif", [(42113, 2, None, "-9999", True)]),
    ):
        tifffile.imwrite(tmp_path / name, iter(tiles), compression="deflate", extratags=tags, **options)
        seen = open_image(tmp_path / name).look(
            np.array([[0, 0, 128, 128]]), (128, 128), fill=torch.tensor([0.5, 0.5, 0.5])
        )[0]
        assert (seen[:, :64, 64:] == 0.5).all()
        assert (seen[:, :20, :30] == (0.5 if name == "declared.tif" else 0)).all()
        assert torch.equal(seen[:, 64:], _as_seen(pixels)[:, 64:])


def test_gdal_mask_levels_are_alpha(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels, mask = photo(256, 256), np.full((256, 256), 255, np.uint8)
    mask[:, :100] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            tmp_path / "a.tif",
            "w",
            driver="GTiff",
            width=256,
            height=256,
            count=3,
            dtype="uint8",
            tiled=True,
            blockxsize=64,
            blockysize=64,
            photometric="rgb",
        ) as file,
    ):
        file.write(pixels.transpose(2, 0, 1))
        file.write_mask(mask)
    image = open_image(tmp_path / "a.tif")
    seen = image.look(np.array([[0, 0, 256, 256]]), (256, 256), fill=torch.tensor([0.3, 0.3, 0.3]))[0]
    assert torch.equal(seen[..., 100:], _as_seen(pixels)[..., 100:]) and (seen[..., :100] == torch.tensor(0.3)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_maps_coordinates_as_pillow_does(tmp_path, orientation):
    from PIL import Image, ImageOps

    pixels = photo(96, 130)
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32), photometric="rgb", extratags=tag, metadata=None)
    flat = Image.fromarray(pixels)
    flat.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(flat))
    image = open_image(tmp_path / "a.tif")
    assert image.size == expected.shape[:2] and image.metadata["orientation"] == orientation
    assert np.array_equal(image.read(0, (0, 0, *image.size)), expected)
    y1 = image.size[0]
    box = (y1 - 40, 3, y1 - 8, 35)
    image._kept.clear()
    before = image.tiles_decoded
    assert torch.equal(image.look(np.array([box]), (32, 32))[0], _as_seen(expected[y1 - 40 : y1 - 8, 3:35]))
    assert image.tiles_decoded - before <= 4


def test_strips_are_decoded_whole(tmp_path):
    pixels = photo(100, 90, 3, np.uint16)
    for compression in (None, "lzw", "deflate"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=7, compression=compression, photometric="rgb")
        image = open_image(tmp_path / "a.tif")
        assert np.array_equal(image.read(0, (0, 0, 100, 90)), pixels)
        assert image.bytes_read > 0


@pytest.mark.parametrize("tiled", [True, False])
def test_large_without_levels_is_converted_once(tmp_path, monkeypatch, caplog, tiled):
    from foveal.images import plain

    monkeypatch.setattr(plain, "LARGE", 10_000)
    pixels = photo(600, 403, 3, np.uint16)
    options = {"tile": (64, 64)} if tiled else {"rowsperstrip": 16}
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        photometric="rgb",
        compression="deflate",
        extratags=[(274, 3, 1, 6, True)],
        metadata=None,
        **options,
    )
    with caplog.at_level(logging.WARNING):
        image = open_image(tmp_path / "a.tif", cache_dir=tmp_path / "cache")
        again = open_image(tmp_path / "a.tif", cache_dir=tmp_path / "cache")
    assert len(caplog.records) == 1 and "converting it once" in caplog.text and str(tmp_path / "a.tif") in caplog.text
    assert image.path == str(tmp_path / "a.tif") and image.size == (403, 600) and len(image.level_sizes) == 3
    assert np.array_equal(again.read(0, (0, 0, 403, 600)), np.rot90(pixels, -1))
    assert [f.suffix for f in (tmp_path / "cache").iterdir()] == [".tif"]


def test_unknown_codec_and_kinds_are_named(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(64, 64), 1)
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = tifffile.TiffFile(tmp_path / "a.tif").pages[0].tags[259].valueoffset
    raw[at : at + 2] = (65123).to_bytes(2, "little")
    (tmp_path / "b.tif").write_bytes(raw)
    with pytest.raises(ImageError, match=r"b\.tif"):
        open_image(tmp_path / "b.tif").look(np.array([[0, 0, 64, 64]]), (64, 64))
    tifffile.imwrite(tmp_path / "c.tif", photo(64, 64), tile=(32, 32), photometric="itulab")
    with pytest.raises(ImageError, match=r"c.tif: stores .* convert it to RGB"):
        open_image(tmp_path / "c.tif")


def test_no_data_with_a_palette(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    index = photo(64, 64, 1)[..., 0]
    index[:20] = 7
    index[20:][index[20:] == 7] = 8
    options = {
        "photometric": "palette",
        "colormap": colours * 257,
        "metadata": None,
        "extratags": [(42113, 2, None, "7", True)],
    }
    tifffile.imwrite(tmp_path / "a.tif", index, tile=(32, 32), **options)
    seen = open_image(tmp_path / "a.tif").look(
        np.array([[0, 0, 64, 64.0]]), (64, 64), fill=torch.tensor([0.1, 0.2, 0.3])
    )[0]
    assert (seen[:, :20] == torch.tensor([0.1, 0.2, 0.3])[:, None, None]).all()
    assert torch.allclose(
        seen[:, 20:], torch.from_numpy(colours.T[index[20:]].astype(np.float32)).permute(2, 0, 1) / 255, atol=1e-6
    )


@pytest.mark.parametrize("overviews", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_levels_and_masks_in_files_beside(tmp_path, overviews, mask):
    """Files as GDAL writes them give the same pixels as GDAL."""
    rasterio = pytest.importorskip("rasterio")
    pixels, path = photo(256, 320), tmp_path / "a.tif"
    options = {"driver": "GTiff", "width": 320, "height": 256, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True):
        with rasterio.open(path, "w", tiled=True, blockxsize=64, blockysize=64, **options) as file:
            file.write(pixels.transpose(2, 0, 1))
            if mask:
                valid = np.full((256, 320), 255, np.uint8)
                valid[:, :96] = 0
                file.write_mask(valid)
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    image = open_image(path)
    assert image.level_sizes == (((256, 320), (128, 160), (64, 80)) if overviews else ((256, 320),))
    with rasterio.open(path) as file:
        assert np.array_equal(image.read(0, (0, 0, 256, 320)), file.read().transpose(1, 2, 0))
        if overviews:
            expected = file.read(out_shape=(3, 64, 80), resampling=rasterio.enums.Resampling.nearest).transpose(1, 2, 0)
            assert np.array_equal(image.read(2, (0, 0, 64, 80)), expected)
    for box, size in (((0, 0, 256, 320), (64, 80)), ((0, 0, 64, 320), (64, 320))):
        seen = image.look(np.array([box], float), size, fill=torch.full((3,), 0.7))[0]
        edge = 96 * size[1] // 320
        assert (seen[:, :, :edge] == 0.7).all().item() == mask and (seen[:, :, edge:] != 0.7).any()
    assert np.array_equal(pickle.loads(pickle.dumps(image)).read(0, (0, 0, 256, 320)), pixels)
