"""Evidence that vanishes at a known level, with boxes and without."""

import io
import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from foveal.cli import main
from foveal.data import DataModule, TensorDataset
from foveal.errors import ConfigError, DataError
from foveal.evaluation import visibility, visible
from foveal.evaluation.visibility import DECIDES, Level, recommend, tnet_levels
from foveal.metrics import Metric

SMALL = {"backbone": "test_efficientnet", "look_size": 40, "device": "cpu"}
OBJECT = 16


def chequered(side: int, block: int) -> np.ndarray:
    """(side, side) of -60 and 60 in blocks of ``block`` px, whose mean over blocks twice as large is 0."""
    rows = np.arange(side) // block
    return 60 * (1 - 2 * ((rows[:, None] + rows) % 2))


def textured(block: int, count: int, seed: int = 0, side: int = 160, whole: bool = False):
    """Images of noise, and on every one (or, if ``whole``, over all of each second one) a pattern that vanishes at the
    scale of two blocks. Returns images (N, 1, side, side) and boxes (N, 4)."""
    rng = np.random.default_rng(seed)
    images = rng.normal(128, 12, (count, side, side))
    corners = 4 * rng.integers(0, (side - OBJECT) // 4, (count, 2))
    for i, (y, x) in enumerate(corners):
        if whole:
            images[i] += (i % 2) * chequered(side, block)
        else:
            images[i, y : y + OBJECT, x : x + OBJECT] += chequered(OBJECT, block)
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8))[:, None]
    return pixels, np.concatenate([corners, corners + OBJECT], 1).astype(float)


def with_boxes(block: int, count: int = 16) -> DataModule:
    images, boxes = textured(block, count)
    return DataModule(("a", "b"), train=TensorDataset(images, torch.arange(count) % 2, ("a", "b"), boxes), name="marks")


def without(targets: np.ndarray, block: int = 2, classes: tuple[str, ...] = ("plain", "marked")) -> DataModule:
    images, _ = textured(block, len(targets), side=128, whole=True)
    return DataModule(classes, train=TensorDataset(images, targets, classes), name="textures")


@pytest.mark.parametrize(("block", "scale"), [(1, 1), (2, 2)])
def test_objects_are_found_up_to_the_level_at_which_they_vanish(block, scale):
    done = []
    found = visible(with_boxes(block), steps=40, on_progress=lambda *step: done.append(step), **SMALL)
    recall = {level.scale: level.metrics[DECIDES].value for level in found.levels}
    assert list(recall) == [1, 2, 4] and found.metric == DECIDES and found.scale == scale
    assert recall[scale] > 0.85
    for level in found.levels:
        assert [level.shorter, level.longer] == [(OBJECT / level.scale,) * 3] * 2
        if level.scale > scale:
            assert level.metrics[DECIDES].value < min(recall[scale] - 0.3, level.metrics["random_4"].interval[1] + 0.2)
        assert level.metrics["random_1"].value < 0.3
    assert [step[:2] for step in done] == [(n, 15) for n in range(1, 16)]
    scan = next(one for one in found.suggested if one.model == "scan")
    assert scan.flags[:6] == ("--model", "scan", "--model.scale", str(scale), "--model.look_size", "40")
    assert "in_chans 1" in " ".join(scan.flags)


def test_textures_are_told_apart_up_to_the_level_at_which_they_vanish():
    found = visible(without(np.arange(40) % 2), look_size=32, device="cpu", looks=4)
    accuracy = {level.scale: level.metrics["accuracy"].value for level in found.levels}
    assert found.metric == "accuracy" and found.scale == 2 and found.about["chance"] == 0.5
    assert accuracy[1] == accuracy[2] == 1 and accuracy[4] < 0.8
    assert [(level.looks, level.covered) for level in found.levels] == [(4, 0.25), (4, 1), (1, 1)]
    assert any("less than half" in note for note in found.notes) and any("random look" in note for note in found.notes)


def test_several_labels_and_rare_classes_are_judged_by_average_precision():
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(40) % 2 == 1, rng.random(40) < 0.5], 1)
    several = visible(without(labels), looks=2, **SMALL | {"look_size": 64})
    assert several.metric == "average_precision" and several.about["chance"] == pytest.approx(labels.mean())
    marked = np.arange(40) % 2 == 1
    marked[20:] = False
    data = without(marked.astype(int))
    data.train.images[21::2] = data.train.images[20::2]
    rare = visible(data, looks=2, **SMALL | {"look_size": 64})
    assert rare.metric == "average_precision" and rare.about["chance"] == 0.25
    assert all("--monitor" in one.flags for one in rare.suggested)


def test_labels_without_evidence_decide_nothing():
    targets, options = np.random.default_rng(0).integers(0, 2, 40), SMALL | {"look_size": 64, "looks": 2}
    found = visible(without(targets), **options)
    assert found.as_dict() == visible(without(targets), **options).as_dict()
    assert found.scale == 1 and found.notes[0].startswith("The evidence cannot decide: no level has a clearly higher")


def level(scale, recall, half=0.02, shorter=None, chance=0.1):
    metrics = {DECIDES: Metric(recall, (recall - half, recall + half)), "random_4": Metric(chance)}
    return Level(
        scale=scale,
        size=(1, 1),
        shorter=shorter and (shorter / scale,) * 3,
        longer=shorter and (shorter / scale,) * 3,
        metrics=metrics if recall is not None else {},
    )


def test_the_coarsest_level_within_the_interval_of_the_best_is_recommended():
    recalls = (0.95, 0.97, 0.96, 0.94)
    levels = [level(2**i, recall) for i, recall in enumerate(recalls)]
    assert recommend(levels, DECIDES, None)[0] == 4
    # Objects of 20 px have 5 px at scale 4, 10 px at scale 2.
    levels = [level(2**i, recall, shorter=20) for i, recall in enumerate(recalls)]
    scale, notes = recommend(levels, DECIDES, None)
    assert scale == 2 and "Scale 4 is as good, but objects have only 5.0 px" in notes[1]
    # No level with 6 px is good.
    assert recommend([level(2, 0.5, shorter=20), level(4, 0.9, shorter=20)], DECIDES, None)[0] == 4
    # Boxes are larger than what matters.
    notes = recommend([level(1, 0.9, shorter=60), level(2, 0.5, shorter=60)], DECIDES, None)[1]
    assert "smaller than its box" in notes[-1]
    # No better than random places: by size, or full resolution.
    assert recommend([level(2**i, 0.11, shorter=20) for i in range(4)], DECIDES, None)[0] == 2
    assert recommend([level(2**i, 0.11) for i in range(4)], DECIDES, None)[0] == 1


def test_few_boxes_decide_by_size_and_large_images_are_not_searched_in_full(monkeypatch):
    found = visible(with_boxes(1, count=4), **SMALL)
    assert found.metric is None and found.scale == 2 and "8 images with boxes" in found.notes[0]
    monkeypatch.setattr(visibility, "MOST_PIXELS", 8 * 160**2 // 4)
    found = visible(with_boxes(2, count=8), steps=2, **SMALL)
    assert [bool(level.metrics) for level in found.levels] == [False, True, True]
    assert found.notes[0].startswith("Not measured: scale 1")


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3, 0.25, 0.1, 1 / 17, 1 / 64, 1 / 143])
def test_the_last_looks_of_a_tnet_have_the_share_of_the_image(share):
    made = tnet_levels(share)
    last = made["region"] ** len(made["locations"])
    assert 0.6 * share < last < 1.12 * share
    assert 0.2 < made["region"] <= 0.5
    assert (1 - made["region"]) / (made["grid"] - 1) <= 0.76 * made["region"]  # neighbours overlap


def test_wrong_arguments_and_data_are_refused_in_a_sentence():
    data = with_boxes(1, count=4)
    for options, words in (
        ({"looks": 0}, "`looks` 0"),
        ({"steps": 0}, "`steps` 0"),
        ({"look_size": 4}, "`look_size` 4"),
        ({"pretrained": True}, "`backbone`: is missing"),
        ({"backbone": "tnet"}, "gives no feature maps"),
        ({"backbone": "no_such_network"}, "no_such_network"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)) as error:
            visible(data, device="cpu", **options)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="without boxes, at least two images with and two without a class"):
        visible(without(np.arange(6) // 5), **SMALL)
    with pytest.raises(DataError, match="there are images of one class, 'plain', and no boxes of objects"):
        visible(without(np.zeros(6, dtype=int)), **SMALL)
    tiny = DataModule(("a", "b"), train=TensorDataset(torch.zeros(4, 3, 5, 30), torch.arange(4) % 2, ("a", "b")))
    with pytest.raises(DataError, match="its median image has 5 x 30 px, and levels are compared from 8 px on"):
        visible(tiny, **SMALL)
    with pytest.raises(ConfigError, match="`look_size` 100000: is too large"):
        visible(data, **SMALL | {"look_size": 100_000})
    with pytest.raises(DataError, match="there is no split 'val'"):
        visible(data, split="val", **SMALL)


def test_the_command_and_the_commands_that_it_prints(tmp_path, monkeypatch, capsys):
    """On files with a column of boxes, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    images, boxes = textured(1, 17, side=96)
    rows = ["path,label,split,boxes"]
    for i, (pixels, box) in enumerate(zip(images, boxes, strict=True)):
        Image.fromarray(pixels[0].numpy()).save(f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},train,{' '.join(map(str, box)) if i < 12 else ''}")
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = ["--data", "manifest", "--data.file", "table.csv", "--data.channels", "1", "--data.val_fraction", "0"]
    how = ["--steps", "80", "--backbone", "test_efficientnet", "--look-size", "32", "--device", "cpu"]
    assert main(["visible", *data, *how, "--out", "visible.json"]) == 1
    said = capsys.readouterr()
    assert "1 image failed" in said.err and "0.png" in said.err
    stored = json.loads((tmp_path / "visible.json").read_text())
    assert stored["images"] == 16 and stored["objects"] == 11 and [e["image"] for e in stored["errors"]] == ["0.png"]
    assert stored["command"].startswith("foveal visible") and stored["scale"] == 1
    assert stored["suggested"][0]["bytes_read"] > 0 and stored["levels"][0]["recall_4"] > 0.7
    assert "object, px" in said.out and f"{stored['scale']} *" in said.out
    (tmp_path / "0.png").write_bytes((tmp_path / "2.png").read_bytes())
    printed = re.findall(r"^foveal (fit (?:.*\\\n)*.*)", said.out, re.MULTILINE)
    assert [shlex.split(line.replace("\\\n", " "))[: 1 + len(data)] for line in printed] == [["fit", *data]] * 2
    how = ["--steps", "1", "--batch-size", "4", "--device", "cpu", "--quiet", "--out", "run"]
    assert main([*shlex.split(printed[0].replace("\\\n", " ")), *how]) == 0


def test_boxes_outside_of_an_image_are_errors_and_others_are_cut(tmp_path, capsys):
    images, boxes = textured(1, 10, side=96)
    boxes[3] += 96
    boxes[4] = (90, 90, 120, 100)
    data = DataModule(("a", "b"), train=TensorDataset(images, torch.arange(10) % 2, ("a", "b"), boxes), name="marks")
    found = visible(data, steps=2, **SMALL)
    ((name, reason),) = found.errors
    assert name == "image 3" and "outside of its 96 x 96 px; give y0 x0 y1 x1 in pixels" in reason
    assert found.about["images"] == found.about["objects"] == 9 and found.levels[0].shorter[0] < OBJECT
    # Found out before images are read.
    assert main(["visible", "--data.root", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path}: is a folder; give a file, such as {tmp_path}/visible.json" in capsys.readouterr().err


def test_commands_fit_narrow_terminals_and_are_whole():
    boxes = np.array([[0, 0, 30, 150.0]] * 9)
    images = torch.randint(0, 255, (9, 3, 192, 192), dtype=torch.uint8)
    data = DataModule(("a", "b"), train=TensorDataset(images, torch.arange(9) % 2, ("a", "b"), boxes))
    found = visible(data, steps=2, **SMALL)
    for width in (80, 40):
        lines = found.commands(width).splitlines()
        assert max(map(len, lines)) <= width and all(line.endswith(" \\") or "foveal fit" not in line for line in lines)
    words = shlex.split(found.commands(40).replace("\\\n", " "))
    assert words == shlex.split(found.commands(200)) and words[:4] == ["foveal", "fit", *found.suggested[0].flags[:2]]


def test_overlapping_intervals_are_told():
    notes = recommend([level(1, 0.9, 0.05), level(2, 0.86, 0.05), level(4, 0.6, 0.05)], DECIDES, None)[1]
    assert any(note.startswith("The intervals of scales 1, 2 overlap: these images cannot") for note in notes)
    notes = recommend([level(1, 0.9, 0.01), level(2, 0.8, 0.01)], DECIDES, None)[1]
    assert not any("overlap" in note for note in notes)


def test_the_table_has_80_columns():
    boxes = np.array([[0, 0, 30, 150.0]] * 9)
    images = torch.randint(0, 255, (9, 3, 192, 192), dtype=torch.uint8)
    data = DataModule(("a", "b"), train=TensorDataset(images, torch.arange(9) % 2, ("a", "b"), boxes))
    found = visible(data, steps=2, **SMALL)
    for wide in (False, True):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(found.table(wide))
        text = console.export_text()
        assert "longer, px" in text and ("recall_16" in text or "16 peaks" in text)
        assert max(map(len, text.splitlines())) <= 80
