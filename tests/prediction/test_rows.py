import copy
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from foveal.errors import ConfigError, RunError
from foveal.glimpse.tnet import TNet
from foveal.models import create_model
from foveal.prediction import Predictor, classify, count_cost, find_images, predict, predict_rows
from foveal.prediction.rows import as_text


def test_images_are_found_once_in_folders_patterns_and_by_name(folder):
    everything = [str(folder / f"{i}.png") for i in range(5)] + [str(folder / "deep" / f"{i}.png") for i in (5, 6)]
    assert find_images([folder]) == [(path, None) for path in everything]
    assert find_images([f"{folder}/**/*.png"]) == [(path, None) for path in everything]
    assert [path for path, _ in find_images([folder / "3.png", f"{folder}/*.png"])] == [
        everything[i] for i in (3, 0, 1, 2, 4)
    ]
    assert find_images([folder / "notes.txt"]) == [(str(folder / "notes.txt"), None)]


def test_what_leads_to_no_image_says_so(folder):
    (folder / "empty").mkdir()
    found = find_images([folder / "empty", f"{folder}/*.svs", folder / "[odd].png"])
    assert [bool(error) for _, error in found] == [True, True, True]
    assert "no images" in found[0][1] and "matches" in found[1][1]
    (folder / "[odd].png").touch()
    assert find_images([folder / "[odd].png"]) == [(str(folder / "[odd].png"), None)]


def test_rows_are_what_classifying_one_by_one_gives(folder, model):
    rows = predict(model, folder, batch_size=3, device="cpu", top_k=2).rows
    assert len(rows) == 7
    for row in rows:
        alone = classify(model, row["path"])
        assert row["label"] == alone.label
        assert row["probability"] == pytest.approx(float(alone.probability), abs=1e-5)
        assert [entry["label"] for entry in row["top_k"]] == [name for name, _ in alone.top(2)]
        assert row["locations"] == alone.locations == 4
        assert [tuple(g["box"]) for g in row["glimpses"]] == [g.box for g in alone.glimpses]
        assert [g["level"] for g in row["glimpses"]] == [1, 2, 2, 3, 3]
        assert [g["parent"] for g in row["glimpses"]] == [g.parent for g in alone.glimpses] == [None, 0, 0, 1, 2]
        added, chosen = [g["contribution"] for g in row["glimpses"]], int(alone.logits.argmax())
        assert added == pytest.approx([float(g.contribution[chosen]) for g in alone.glimpses], abs=1e-5)
        assert sum(added) == pytest.approx(float(alone.logits[chosen]), abs=1e-5)
        assert row["size"] in ([60, 90], [80, 90]) and row["levels"] == [row["size"]] and row["crs"] is None
        assert row["macs"] == count_cost(model, 90).macs
        assert 0 < row["bytes_read"] <= Path(row["path"]).stat().st_size
        assert row["seconds"] > 0
        assert row["error"] is None


def test_rows_tell_the_looks_that_an_image_has_cells_for(tmp_path, model):
    """An image of 1 : 2.5 has three distinct cells, a square one nine."""
    for name, size in (("long", (48, 120)), ("square", (90, 90)), ("upright", (120, 48))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    long, square, upright = predict(model, tmp_path, locations=(5, 1), device="cpu").rows
    assert (long["locations"], square["locations"], upright["locations"]) == (6, 10, 6)
    assert [len(row["glimpses"]) for row in (long, square, upright)] == [7, 11, 7]
    assert (
        long["macs"] == upright["macs"] == count_cost(model, 90, (3, 1)).macs
        and square["macs"] == count_cost(model, 90, (5, 1)).macs
    )


def test_rows_carry_the_size_of_a_pixel(tmp_path):
    torch.manual_seed(0)
    closer = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1), region_mpp=1.0).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (800, 400, 3), dtype=np.uint8)
    for name, mpp in (("a", 0.5), ("b", 0.25)):
        how = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, tile=(64, 64), photometric="rgb", **how)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    rows = predict(closer, tmp_path, device="cpu").rows
    assert [row["mpp"] for row in rows] == [pytest.approx(0.5), pytest.approx(0.25), None]
    for row in rows[:2]:
        thumbnail, *looks = row["glimpses"]
        assert thumbnail["mpp"] == pytest.approx(row["mpp"] * (800 / 32 * 400 / 32) ** 0.5)
        assert [g["mpp"] for g in looks] == pytest.approx([2.0 if g["level"] == 2 else 1.0 for g in looks])
        assert row["macs"] == count_cost(closer, (800, 400), mpp=row["mpp"]).macs
    assert rows[2]["error"].startswith(f"{tmp_path / 'c.png'}: has no pixel size") and rows[2]["glimpses"] == []
    # A model whose cells are shares of the image needs no scale, but reports it.
    plain = predict(create_model("test_resnet", num_classes=3), tmp_path, device="cpu").rows
    assert [row["error"] for row in plain] == [None] * 3
    assert [row["mpp"] for row in plain] == [pytest.approx(0.5), pytest.approx(0.25), None]
    assert plain[0]["glimpses"][0]["mpp"] == pytest.approx(0.5 * 800 / 160) and plain[2]["glimpses"][0]["mpp"] is None


def test_random_looks_do_not_depend_on_the_batch(folder, model):
    boxes = [
        {
            row["path"]: row["glimpses"][1]["box"]
            for row in predict(model, folder, batch_size=n, policy="random", device="cpu", seed=4).rows
        }
        for n in (2, 7)
    ]
    assert boxes[0] == boxes[1]
    assert len({tuple(box) for box in boxes[0].values()}) > 1


def test_bad_images_are_rows_and_spoil_no_other(folder, model):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:2000])
    (folder / "2.png").write_bytes(b"")
    (folder / "4.png").write_text("this is not an image")
    summary = predict(model, [folder, folder / "missing.png", f"{folder}/*.svs"], batch_size=4, device="cpu")
    bad = [
        str(folder / "1.png"),
        str(folder / "2.png"),
        str(folder / "4.png"),
        str(folder / "missing.png"),
        f"{folder}/*.svs",
    ]
    assert sorted(path for path, _ in summary.failed) == sorted(bad)
    assert (summary.images, summary.predicted) == (9, 4)
    for row in summary.rows:
        if row["path"] in bad:
            assert row["path"] in row["error"] and "\n" not in row["error"]
            assert row["label"] is None and row["glimpses"] == []
        else:
            assert row["label"] == classify(model, row["path"]).label


def test_a_dense_network_predicts_too_but_takes_no_locations(folder):
    dense = create_model("test_resnet", num_classes=3)
    assert predict(dense, folder / "0.png", device="cpu").rows[0]["locations"] == 0
    with pytest.raises(ConfigError, match="looks once"):
        predict(dense, folder / "0.png", locations=(2,), device="cpu")


def test_no_more_than_two_batches_are_open(folder, model, monkeypatch):
    import foveal.images as images
    from foveal.prediction import predictor

    open_now, most = set(), 0
    real = images.open_image

    def opening(path, **options):
        nonlocal most
        image = real(path, **options)
        open_now.add(path)
        most = max(most, len(open_now))
        close = image.close
        monkeypatch.setattr(image, "close", lambda: (open_now.discard(path), close()), raising=False)
        return image

    monkeypatch.setattr(predictor, "open_image", opening)
    list(predict_rows(model, [path for path, _ in find_images([folder])], batch_size=2, device="cpu"))
    assert 2 <= most <= 4
    assert not open_now


def test_bfloat16(folder, model):
    exact, rounded = (
        predict(model, folder / "0.png", device="cpu", precision=p, locations=()).rows[0] for p in ("32", "bf16")
    )
    assert rounded["probability"] == pytest.approx(exact["probability"], abs=0.02)


def test_answers_that_are_no_numbers_are_errors_of_their_image(folder):
    dense = create_model("test_resnet", num_classes=3)

    def spoil(_, __, logits):
        return torch.where(torch.arange(len(logits))[:, None] == 1, torch.nan, logits)

    dense.register_forward_hook(spoil)
    rows = predict(dense, [str(folder / f"{i}.png") for i in range(3)], device="cpu").rows
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"] == f"{folder / '1.png'}: the logits of this image are not finite; check its values"


def test_weights_that_are_no_numbers_are_an_error_of_the_run(folder):
    dense = create_model("test_resnet", num_classes=3)
    with torch.no_grad():
        next(dense.parameters())[0] = float("nan")
    with pytest.raises(RunError, match="not all finite numbers"):
        predict(dense, folder / "0.png", device="cpu")


def test_every_path_has_a_text_of_its_own():
    names = [
        os.fsdecode(name)
        for name in (b"a\xff", b"a\xfe", b"a\\udcff", b"a\\\\udcff", b"a\\\xff", b"a\\\\\xff", b"a\\b", b"a")
    ]
    texts = [as_text(name) for name in names]
    assert len(set(texts)) == len(names) and all(text.encode() for text in texts)
    assert texts[-2:] == ["a\\b", "a"]


def test_impossible_names_are_rows(folder, model):
    paths = [str(folder / ("n" * 300 + ".png")), str(folder / ("deep/" * 900 + "a.png")), str(folder / "0.png")]
    rows = predict(model, paths, device="cpu").rows
    assert [row["error"] is None for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    "how, sentence",
    [
        ({"top_k": 0}, "^`top_k` 0: is not a whole number from 1; give one$"),
        ({"batch_size": 0}, "^`batch_size` 0: is not a whole number from 1; give one$"),
        ({"threads": 0}, "^`threads` 0: is not a whole number from 1; give one$"),
        ({"until": "2.0GMAC"}, "^`until` 2.0GMAC: is not an Exit; give one that foveal.prediction.read_exits"),
        ({"locations": 1.7}, "^`locations` 1.7: are not whole numbers"),
    ],
)
def test_arguments_that_cannot_be(folder, model, tmp_path, how, sentence):
    with pytest.raises(ConfigError, match=sentence):
        predict(model, folder, out=tmp_path / "rows.csv", **how)
    assert [file.name for file in tmp_path.iterdir()] == ["images"]
    with pytest.raises(ConfigError, match=sentence):
        list(predict_rows(model, [folder / "0.png"], **how))


def test_classify_takes_a_number_of_locations(folder, model):
    assert classify(model, folder / "0.png", locations=1).locations == 1
    with pytest.raises(ConfigError, match=r"^`batch_size` 0: is not"):
        classify(model, folder / "0.png", batch_size=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_found_in_any_tensor(model, value):
    for name in ("first", "last"):
        broken = copy.deepcopy(model)
        tensors = {key: tensor for key, tensor in broken.state_dict().items() if tensor.is_floating_point()}
        key = list(tensors)[0 if name == "first" else -1]
        tensors[key][(-1,) * tensors[key].ndim] = value
        with pytest.raises(RunError, match=f"the weights {re.escape(key)} are not all finite"):
            Predictor(broken)


def test_weights_whose_sum_overflows_are_numbers(model):
    large = copy.deepcopy(model)
    next(large.parameters()).data.fill_(3e38)
    Predictor(large)
