"""Images in memory: the same pixels give the same result, and invalid inputs raise an error."""

import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps, ImageSequence

from foveal.errors import ConfigError, FovealError, ImageError
from foveal.images import ArrayPyramid, ImageViews, TensorViews, View, as_image, open_image
from foveal.models import create_classifier
from foveal.prediction import classify, predict
from foveal.runs import ModelInfo, Run, save_model
from tests.images.files import photo

TNET = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}
H, W = 90, 70


def make(bands: int = 3, value_range=None, **options):
    torch.manual_seed(0)
    model = create_classifier(**{**TNET, **options}, num_classes=3, in_chans=bands).eval()
    if value_range is not None:
        model.value_range = value_range
    return model


@pytest.fixture(scope="module")
def model():
    return make()


def same(model, *images) -> None:
    first, *others = [classify(model, image).logits for image in images]
    for i, logits in enumerate(others, start=1):
        assert torch.equal(first, logits), i


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), -1, 0)))


# ------------------------------------------------------------------------------------- the same pixels, the same answer


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_file_an_array_and_a_tensor(tmp_path, model, bands, dtype):
    pixels = photo(H, W, bands, dtype)
    flat = pixels[..., 0] if bands == 1 else pixels
    tifffile.imwrite(tmp_path / "a.tif", flat, photometric="rgb" if bands == 3 else "minisblack")
    forms = [
        tmp_path / "a.tif",
        str(tmp_path / "a.tif"),
        open_image(tmp_path / "a.tif"),
        pixels,
        flat,
        tensor(pixels),
        tensor(pixels)[None],
    ]
    if dtype == np.uint8 or bands == 1:  # Pillow has no colours of 16 bits
        Image.fromarray(flat).save(tmp_path / "a.png")
        forms += [tmp_path / "a.png", Image.open(tmp_path / "a.png"), Image.fromarray(flat)]
    logits = [classify(model, form).logits.reshape(3) for form in forms]
    assert all(torch.equal(one, logits[0]) for one in logits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floats_are_shares(model, dtype):
    pixels = photo(H, W)
    expected = classify(model, pixels).logits
    shares = (pixels / 255).astype(dtype)
    tolerance = 1e-3 if dtype == np.float16 else 1e-5
    torch.testing.assert_close(classify(model, shares).logits, expected, rtol=0, atol=tolerance)
    if dtype != np.longdouble:
        torch.testing.assert_close(classify(model, tensor(shares)).logits, expected, rtol=0, atol=tolerance)


def _pictures() -> dict[str, Image.Image]:
    colour, grey = Image.fromarray(photo(H, W)), Image.fromarray(photo(H, W, 1)[..., 0])
    clear = Image.fromarray((photo(H, W, 1, seed=1)[..., 0] > 128).astype(np.uint8) * 200)
    seen = colour.copy()
    seen.putalpha(clear)
    half = grey.copy()
    half.putalpha(clear)
    return {
        "1": grey.convert("1"),
        "L": grey,
        "P": colour.convert("P"),
        "P of grey": grey.convert("P"),
        "RGB": colour,
        "RGBA": seen,
        "LA": half,
        "I;16": Image.fromarray(photo(H, W, 1, np.uint16)[..., 0]),
    }


@pytest.mark.parametrize("mode", _pictures())
def test_pillow_images_are_seen_as_their_png_is(tmp_path, model, mode):
    _pictures()[mode].save(tmp_path / "a.png")
    same(model, tmp_path / "a.png", Image.open(tmp_path / "a.png"))


@pytest.mark.parametrize(("mode", "key"), [("P", None), ("L", 94), ("RGB", (94, 129, 193)), ("1", 0), ("I;16", 18800)])
def test_a_transparent_colour_is_outside(tmp_path, model, mode, key):
    picture = _pictures()[mode]
    if mode == "P":
        key = picture.getpixel((3, 3))
    elif mode != "1":
        picture.putpixel((3, 3), key)
    picture.save(tmp_path / "a.png", transparency=key)
    same(model, tmp_path / "a.png", Image.open(tmp_path / "a.png"))
    alpha = as_image(Image.open(tmp_path / "a.png"))._alpha
    assert alpha is not None and 0 < alpha.mean() < 1


@pytest.mark.parametrize("kind", ["gif", "bmp", "ppm", "pgm", "webp"])
def test_pillow_images_of_other_files(tmp_path, model, kind):
    picture = (
        Image.fromarray(photo(H, W, 1, np.uint16)[..., 0]).convert("I")
        if kind == "pgm"
        else Image.fromarray(photo(H, W))
    )
    picture.save(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))
    same(model, tmp_path / f"a.{kind}", Image.open(tmp_path / f"a.{kind}"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_other_colours_become_rgb(model, mode):
    picture = Image.fromarray(photo(H, W))
    picture = picture.convert(mode) if mode != "LAB" else Image.merge("LAB", picture.split())
    same(model, picture, picture.convert("RGB"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_premultiplied_and_palettes_with_alpha(model, mode):
    plain = _pictures()["LA" if mode != "RGBa" else "RGBA"]
    picture = plain.convert(mode)
    torch.testing.assert_close(classify(model, picture).logits, classify(model, plain).logits, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
def test_pillow_images_are_turned_as_exif_says(tmp_path, model, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(H, W)).save(
        tmp_path / f"a.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {})
    )
    opened = Image.open(tmp_path / f"a.{kind}")
    assert as_image(opened).size == (W, H)
    turned = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{kind}"))
    same(model, Image.open(tmp_path / f"a.{kind}"), turned, np.asarray(turned))
    if kind != "jpg":
        same(model, turned, tmp_path / f"a.{kind}")


def _odd_arrays() -> dict[str, np.ndarray]:
    pixels = photo(H, W)
    locked = pixels.copy()
    locked.flags.writeable = False
    wide = np.zeros((H, 2 * W, 3), np.uint8)
    wide[:, ::2] = pixels
    return {
        "negative strides": pixels[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": locked,
        "every other column": wide[:, ::2],
        "Fortran's order": np.asfortranarray(pixels),
        "a view of channels first": np.moveaxis(np.moveaxis(pixels, -1, 0).copy(), 0, -1),
        "no mask set": np.ma.array(pixels),
    }


@pytest.mark.parametrize("how", _odd_arrays())
def test_arrays_however_they_lie_in_memory(model, how, recwarn):
    same(model, photo(H, W), _odd_arrays()[how])
    assert not list(recwarn)


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", ">f8"])
def test_arrays_of_any_byte_order(model, dtype):
    pixels = photo(H, W, dtype=np.uint16) if "u" in dtype else photo(H, W, dtype=np.float32)
    same(model, pixels, pixels.astype(dtype))


def _odd_tensors() -> dict[str, torch.Tensor]:
    x = tensor(photo(H, W, dtype=np.float32))
    return {
        "with a gradient": x.clone().requires_grad_(),
        "a parameter": torch.nn.Parameter(x.clone()),
        "a result": x.clone().requires_grad_() * 1,
        "not contiguous": x.transpose(1, 2).contiguous().transpose(1, 2),
        "double": x.double(),
        "made for inference": x[:],
    }


@pytest.mark.parametrize("how", _odd_tensors())
def test_tensors_of_any_kind(model, how):
    x = tensor(photo(H, W, dtype=np.float32))
    same(model, x, _odd_tensors()[how])
    torch.testing.assert_close(
        classify(model, [_odd_tensors()[how]])[0].logits, classify(model, x).logits, rtol=0, atol=1e-5
    )


def test_black_and_white(model):
    mask = photo(H, W, 1)[..., 0] > 128
    same(model, mask, mask.astype(np.uint8) * 255, torch.from_numpy(mask)[None], Image.fromarray(mask))


@pytest.mark.parametrize(
    "x", [photo(H, W), photo(H, W, dtype=np.uint16), photo(H, W, dtype=np.float32)], ids=["uint8", "uint16", "float"]
)
def test_what_is_given_stays_as_it_is(x):
    """Inputs are not modified, also for a model with a value range."""
    ranged, before, t = make(value_range=(0.0, 0.5 if x.dtype.kind == "f" else 200.0)), x.copy(), tensor(x)
    first = classify(ranged, x).logits
    assert torch.equal(first, classify(ranged, x).logits) and torch.equal(first, classify(ranged, t).logits)
    assert np.array_equal(x, before) and np.array_equal(t.numpy(), np.moveaxis(before, -1, 0))


def test_masked_pixels_are_outside(model):
    pixels = photo(H, W, dtype=np.float32)
    pixels[:20] = -9999
    masked = np.ma.masked_equal(pixels, -9999)
    expected = ArrayPyramid(
        np.where(pixels < 0, 0, pixels), (pixels[..., 0] >= 0).astype(np.float32), value_range=(0, 1)
    )
    same(model, masked, expected)


def test_an_ambiguous_shape_is_taken_by_its_kind(model):
    x = np.zeros((3, 40, 3), np.uint8)
    assert as_image(x, channels=3).size == (3, 40) and as_image(torch.from_numpy(x), channels=3).size == (40, 3)
    assert as_image(np.zeros((3, 3), np.uint8), channels=3).size == (3, 3)


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_any_number_of_bands_for_a_model_of_as_many(tmp_path, bands):
    model, pixels = make(bands), photo(H, W, bands)
    how = {"planarconfig": "contig", "extrasamples": [0] * (bands - 1)} if bands > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels if bands > 1 else pixels[..., 0], photometric="minisblack", **how)
    same(model, tmp_path / "a.tif", pixels, tensor(pixels))


# ---------------------------------------------------------------------------------------------------------- value range


def test_values_in_the_range_that_the_model_was_trained_on(tmp_path):
    """Files, integers, floats, open images and images scaled for another model give the same result."""
    pixels = photo(H, W, dtype=np.uint16) // 40
    ranged = make(value_range=(100.0, 1500.0))
    tifffile.imwrite(tmp_path / "u.tif", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "f.tif", pixels.astype(np.float32), photometric="rgb")
    forms = [
        tmp_path / "u.tif",
        tmp_path / "f.tif",
        pixels,
        pixels.astype(np.int16),
        pixels.astype(np.int64),
        pixels.astype(np.uint32),
        pixels.astype(np.float64),
        tensor(pixels),
        tensor(pixels.astype(np.float32)),
        open_image(tmp_path / "u.tif"),
        open_image(tmp_path / "u.tif", value_range=(100, 1500)),
    ]
    same(ranged, *forms)
    scaled = np.clip((pixels.astype(np.float32) - 100) / 1400, 0, 1)
    torch.testing.assert_close(classify(ranged, pixels).logits, classify(make(), scaled).logits, rtol=0, atol=1e-5)


def test_no_data_is_outside_for_a_model_with_a_range(tmp_path):
    pixels = 1000 * photo(H, W, dtype=np.float32)
    pixels[:20], pixels[30, 30, 1] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    same(make(value_range=(0, 1000)), tmp_path / "a.tif", pixels, tensor(pixels))


def test_an_image_opened_with_a_range_keeps_it(tmp_path):
    pixels = photo(H, W)
    ranged = make(value_range=(0, 4000))
    opened = ArrayPyramid(pixels, value_range=(0, 255))
    torch.testing.assert_close(classify(ranged, opened).logits, classify(make(), pixels).logits, rtol=0, atol=1e-6)


def test_masks_of_zeros_and_ones_over_their_range(tmp_path):
    mask = (photo(H, W, 1)[..., 0] > 128).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    same(make(value_range=(0, 1)), mask, tmp_path / "a.png", mask.astype(np.float32), tensor(mask))


FEW = photo(H, W, dtype=np.float32)
UNTRAINED = {
    "8 bits where 12 were trained": (photo(H, W), (0, 4095), "uint8 pixels, which end at 255, were given"),
    "8 bits where shares were trained": (
        photo(H, W),
        (0, 1),
        r"(values from 0 to 255|uint8 pixels up to 255) were given",
    ),
    "16 bits where shares were trained": (
        photo(H, W, dtype=np.uint16),
        (0, 1),
        r"values from 0 to 6.554e\+04 were given",
    ),
    "integers where shares were trained": (photo(H, W).astype(np.int64), (0, 1), r"values from 0 to 255 were given"),
    "integers that end too early": (
        photo(H, W).astype(np.int16),
        (0, 50000),
        "int16 pixels, which end at 32767, were given",
    ),
    "shares where 12 bits were trained": (FEW, (0, 4095), "values from 0 to 1 were given"),
    "all above": (1000 + photo(H, W, dtype=np.uint16) // 100, (0, 255), r"values from 1000 to 1655 were given"),
    "all below": (-5 - FEW, (0, 255), r"values from -6 to -5 were given"),
}


@pytest.mark.parametrize("case", UNTRAINED)
def test_values_that_cannot_be_those_of_training(tmp_path, case):
    pixels, value_range, sentence = UNTRAINED[case]
    ranged = make(value_range=value_range)
    expected = (
        rf"^\S+: {sentence}, and the model was trained on values from 0 to {value_range[1]}; give values in that range$"
    )
    forms = [pixels, tensor(pixels)]
    if pixels.dtype == np.uint8:
        Image.fromarray(pixels).save(tmp_path / "a.png")
        forms += [Image.fromarray(pixels), tmp_path / "a.png", open_image(tmp_path / "a.png")]
    for form in forms:
        with pytest.raises(ImageError, match=expected):
            classify(ranged, form)


def test_one_black_tile_is_an_image():
    ranged = make(value_range=(0, 4095))
    same(ranged, np.zeros((H, W, 3), np.uint16), np.zeros((H, W, 3), np.float32), torch.zeros(3, H, W))


# ----------------------------------------------------------------------------------------------------- what is no image


def changed(x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x[3, 4, 1] = value
    return x


SHARES = "and floats are taken from 0 to 1;"
BAD = {
    "floats to 255": (255 * FEW, rf"float values from 0 to 255 were given, {SHARES} divide them by 255, or give uint8"),
    "floats to 65535": (
        65535 * FEW,
        rf"float values from 0 to 6.554e\+04 were given, {SHARES} divide them by the value that is white",
    ),
    "normalised": (
        4 * FEW - 2,
        rf"float values from -2 to 2 were given, {SHARES} give the image before it is normalised",
    ),
    "one bright value": (changed(FEW, 1.5), rf"float values from 0 to 1.5 were given, {SHARES}"),
    "one NaN": (changed(FEW, np.nan), "some values are NaN or infinite; replace them"),
    "one infinity": (changed(FEW, -np.inf), "some values are NaN or infinite; replace them"),
    "too large for float32": (changed(FEW.astype(np.float64), 1e300), "some values are NaN or infinite; replace them"),
    "bands first": (
        np.moveaxis(photo(H, W), -1, 0),
        r"an array of shape \(3, 90, 70\) has its bands first, .*; give numpy.moveaxis",
    ),
    "grey bands first": (np.zeros((1, H, W), np.uint8), r"an array of shape \(1, 90, 70\) has its bands first"),
    "seven bands": (np.zeros((H, W, 7), np.uint8), "has 7 bands where 3 are expected"),
    "two bands": (np.zeros((H, W, 2), np.uint8), "has 2 bands where 3 are expected"),
    "four bands": (
        np.zeros((H, W, 4), np.uint8),
        r"has 4 bands where 3 are expected; if the fourth is alpha, give x\[..., :3\], or PIL",
    ),
    "a batch": (
        np.zeros((2, H, W, 3), np.uint8),
        r"an array of shape \(2, 90, 70, 3\) was given, .*; give one image, or a list of images",
    ),
    "a line": (
        np.zeros(7, np.uint8),
        r"an array of shape \(7,\) was given, and an array is taken as \(H, W\) or \(H, W, C\)",
    ),
    "a number": (np.array(7), r"an array of shape \(\) was given"),
    "no rows": (np.zeros((0, W, 3), np.uint8), r"an array of shape \(0, 70, 3\) has no pixels"),
    "no bands": (np.zeros((H, W, 0), np.uint8), r"an array of shape \(90, 70, 0\) has no pixels"),
    "integers": (
        np.zeros((H, W, 3), np.int64),
        "pixels of the type int64 were given; give uint8, uint16, or floats from 0 to 1",
    ),
    "long integers": (np.zeros((H, W, 3), np.uint32), "pixels of the type uint32 were given"),
    "complex": (np.zeros((H, W, 3), np.complex64), "pixels of the type complex64 were given"),
    "objects": (np.full((H, W, 3), None), "pixels of the type object were given"),
    "text": (np.full((H, W, 3), "a"), "pixels of the type <U1 were given"),
    "dates": (np.zeros((H, W, 3), "M8[s]"), r"pixels of the type datetime64\[s\] were given"),
    "records": (np.zeros((H, W), [("r", "u1"), ("g", "u1")]), "pixels of the type "),
    "tensor, floats to 255": (255 * tensor(FEW), rf"float values from 0 to 255 were given, {SHARES}"),
    "tensor, one NaN": (tensor(changed(FEW, np.nan)), "some values are NaN or infinite"),
    "tensor, bands last": (
        torch.from_numpy(photo(H, W)),
        r"a tensor of shape \(90, 70, 3\) has its bands last, .*; give x.permute\(2, 0, 1\)",
    ),
    "tensor without bands": (
        torch.zeros(H, W),
        r"a tensor of shape \(90, 70\) was given, .*; give x\[None\] for a grey image",
    ),
    "tensor of five dimensions": (torch.zeros(1, 1, 3, H, W), r"a tensor of shape \(1, 1, 3, 90, 70\) was given"),
    "tensor, seven bands": (torch.zeros(7, H, W), "has 7 bands where 3 are expected"),
    "tensor, four bands": (
        torch.zeros(4, H, W),
        r"has 4 bands where 3 are expected; if the fourth is alpha, give x\[:3\]",
    ),
    "tensor without columns": (torch.zeros(3, H, 0), r"a tensor of shape \(3, 90, 0\) has no pixels"),
    "tensor of labels": (torch.zeros(3, H, W, dtype=torch.int32), "pixels of the type int32 were given"),
    "complex tensor": (torch.zeros(3, H, W, dtype=torch.complex64), "pixels of the type complex64 were given"),
    "meta tensor": (torch.zeros(3, H, W, device="meta"), "the tensor is on the meta device"),
    "sparse tensor": (torch.zeros(3, H, W).to_sparse(), "the tensor is sparse or nested"),
    "a Pillow image without columns": (Image.new("RGB", (0, H)), r"an image of shape \(90, 0, 3\) has no pixels"),
    "a Pillow image of floats to 255": (
        Image.fromarray(255 * FEW[..., 0]),
        r"float values from 2.7\d+ to 237.4 were given",
    ),
    "a Pillow image of 32 bits": (
        Image.fromarray(np.full((H, W), 70000, np.int32)),
        "a Pillow image of 32-bit integers has values beyond",
    ),
    "None": (None, "None was given; give a path, a Pillow image, a NumPy array"),
    "bytes": (b"\xff\xd8", "an object of the type bytes was given"),
    "a dictionary": ({"a": 1}, "an object of the type dict was given"),
    "a number alone": (7, "an object of the type int was given"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_the_image_gets_one_sentence(model, case, recwarn):
    image, sentence = BAD[case]
    good = photo(H, W)
    with pytest.raises(ImageError, match=rf"^image: {sentence}[^\n]*$"):
        classify(model, image)
    rows = predict(model, [good, image, tensor(good)], device="cpu").rows
    assert [row["path"] for row in rows] == ["[0]", "[1]", "[2]"]
    assert re.search(rf"^\[1\]: {sentence}[^\n]*$", rows[1]["error"]) and rows[1]["label"] is None
    assert rows[0]["error"] is rows[2]["error"] is None and rows[0]["probability"] == pytest.approx(
        rows[2]["probability"]
    )
    assert not list(recwarn)


def test_colours_for_a_model_of_one_band(tmp_path):
    Image.fromarray(photo(H, W)).save(tmp_path / "a.png")
    for image in (
        photo(H, W),
        tensor(photo(H, W)),
        Image.fromarray(photo(H, W)),
        tmp_path / "a.png",
        open_image(tmp_path / "a.png"),
    ):
        with pytest.raises(
            ImageError, match=r": has 3 bands where 1 are expected; convert it, or use a model made for 3$"
        ):
            classify(make(1), image)


def test_of_a_batch_the_bad_one_is_named(model):
    batch = torch.rand(4, 3, H, W)
    batch[2] *= 255
    with pytest.raises(ImageError, match=r"^\[2\]: float values "):
        classify(model, batch)
    rows = predict(model, batch, device="cpu").rows
    assert [row["error"] is None for row in rows] == [True, True, False, True]


@pytest.mark.parametrize("nothing", [[], (), torch.empty(0, 3, 8, 8), ImageViews([])])
def test_no_image_at_all(model, nothing):
    with pytest.raises(ImageError, match="there is no image to classify; give at least one"):
        classify(model, nothing)
    if not isinstance(nothing, ImageViews):
        assert predict(model, nothing, device="cpu").images == 0


def test_a_damaged_file_that_pillow_opened(tmp_path, model):
    Image.fromarray(photo(H, W)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ImageError, match=r"^image: the Pillow image cannot be read \(.*\); open it again, or give its path$"
    ):
        classify(model, Image.open(tmp_path / "a.png"))


# ------------------------------------------------------------------------------------------------------- lists and rows


def test_a_list_of_everything(tmp_path, model):
    pixels = photo(H, W)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = photo(50, 60, 1)[..., 0]
    everything = [
        tmp_path / "a.png",
        pixels,
        Image.fromarray(grey),
        tensor(pixels),
        torch.stack([tensor(pixels)] * 2),
        open_image(tmp_path / "a.png"),
    ]
    together = classify(model, tuple(everything), batch_size=4)
    alone = [classify(model, image).logits for image in (pixels, grey)]
    for i in range(7):
        torch.testing.assert_close(together[i].logits, alone[i == 2], rtol=0, atol=1e-5)
    summary = predict(model, (image for image in everything), device="cpu", batch_size=3)
    names = [str(tmp_path / "a.png"), "[1]", "[2]", "[3]", "[4][0]", "[4][1]", "[5]"]
    assert [row["path"] for row in summary.rows] == names and not summary.failed
    assert all(
        row["probability"] == pytest.approx(float(together[i].probability), abs=1e-5)
        for i, row in enumerate(summary.rows)
    )
    assert all(row["error"] is None for row in summary.rows)
    assert classify(model, [View(open_image(tmp_path / "a.png"))]).logits.shape == (1, 3)


def test_one_image_is_one_row(tmp_path, model):
    pixels = photo(H, W)
    for image in (pixels, tensor(pixels), Image.fromarray(pixels), ArrayPyramid(pixels)):
        assert [row["path"] for row in predict(model, image, device="cpu").rows] == ["[0]"]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert len(predict(model, np.array([str(tmp_path / "a.png")] * 2), device="cpu").rows) == 1


def test_one_image_several_times(tmp_path, model):
    """A list may contain one object several times. An iterator must not, because it may have changed the object."""
    Image.fromarray(photo(H, W)).save(tmp_path / "a.png")
    Image.fromarray(photo(H, W)).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(photo(H, W, seed=1))]
    )
    rows = predict(model, [Image.open(tmp_path / "a.png")] * 8, device="cpu").rows
    assert len({row["probability"] for row in rows}) == 1 and not any(row["error"] for row in rows)
    with pytest.raises(ConfigError, match=r"^the iterator yields the same object .*; yield copies of it$"):
        predict(model, ImageSequence.Iterator(Image.open(tmp_path / "a.gif")), device="cpu")
    assert len(predict(model, (str(tmp_path / "a.png") for _ in range(2)), device="cpu").rows) == 1


def test_rows_of_images_in_memory_are_not_continued(tmp_path, model):
    images, out = [photo(H, W), photo(H, W, seed=1)], tmp_path / "rows.csv"
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    assert predict(model, tmp_path / "a.png", device="cpu", out=out).predicted == 1
    assert predict(model, images, device="cpu", out=out).predicted == 2
    before = out.read_bytes()
    with pytest.raises(
        ConfigError,
        match=r"^\S+rows.csv: has a row of an image \[0\] in memory, which may be another image; choose",
    ):
        predict(model, images[::-1], device="cpu", out=out)
    assert out.read_bytes() == before
    assert predict(model, images, device="cpu", out=out, resume=False).predicted == 2


@pytest.mark.parametrize("form", [str, lambda path: path, Run], ids=["str", "Path", "Run"])
def test_a_run_folder_is_a_model(tmp_path, form):
    save_model(tmp_path / "run", make(), ModelInfo(TNET, ("a", "b", "c")))
    pixels = photo(H, W)
    seen = classify(form(tmp_path / "run"), pixels)
    assert torch.equal(seen.logits, classify(make(), pixels).logits) and seen.label in ("a", "b", "c")
    (row,) = predict(form(tmp_path / "run"), pixels, device="cpu").rows
    assert row["label"] == seen.label


def test_a_model_that_is_none(model):
    for call in (classify, predict):
        with pytest.raises(
            ConfigError,
            match=r"^model: an object of the type ndarray was given; give a network, or the path of a run folder$",
        ):
            call(photo(H, W), model)
        with pytest.raises(FovealError, match=r"nowhere: there is no such run folder"):
            call("nowhere", photo(H, W))
    with pytest.raises(ConfigError, match=r"`device` gpu9: this machine has no such device"):
        classify(model, photo(H, W), device="gpu9")


def test_images_that_are_squashed_first(tmp_path):
    """A model that was trained on images resized whole resizes its inputs in the same way."""
    pixels = photo(H, W)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = create_classifier("test_resnet", num_classes=2, image_size=32)
    model.image_size = 48
    same(model, tmp_path / "a.png", pixels, tensor(pixels), Image.fromarray(pixels))
    assert classify(model, tensor(pixels)).glimpses[0].box == (0, 0, 48, 48)


# ----------------------------------------------------------------------------------------------------- the model itself


@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_a_model_that_is_called_itself_refuses_floats_that_are_no_shares(model, scale):
    batch = scale * torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        with pytest.raises(
            ImageError, match=r"^images: float values from .* were given, and floats are taken from 0 to 1;"
        ):
            model(batch)
        assert model(batch / scale).logits.shape == (2, 3)
        assert model(TensorViews(batch)).logits.shape == (2, 3)  # views are not checked


def test_views_of_other_bands(model):
    with pytest.raises(ImageError, match=r"^images: have 1 bands where the model takes 3; open them with channels=3"):
        classify(model, TensorViews(torch.rand(2, 1, 40, 40)))
