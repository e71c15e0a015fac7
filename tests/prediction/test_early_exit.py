"""Early exit: when images stop, the saved cost, and the file in the run folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal.errors import ConfigError, RunError
from foveal.images import ImageViews, open_image
from foveal.models import create_model
from foveal.prediction import count_cost, predict
from foveal.prediction.early_exit import (
    Exit,
    format_cost,
    look_until,
    parse_cost,
    read_exits,
    turns,
    write_exits,
)
from tests.images.files import photo, write_pyramid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.0GMAC", (2e9, "macs")),
        ("20 mmacs", (2e7, "macs")),
        ("1TMAC", (1e12, "macs")),
        ("500mac", (500.0, "macs")),
        ("15ms", (15.0, "ms")),
        ("3locations", (3.0, "locations")),
        ("1.5 location", (1.5, "locations")),
    ],
)
def test_costs_as_people_type_them(text, expected):
    cost, unit = parse_cost(text)
    assert (cost, unit) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize("text", ["3", "GMAC", "2,1", "0ms", "-1ms", "2Gms", "15 s", "2ducks", ""])
def test_what_is_no_cost_gets_a_sentence(text):
    with pytest.raises(
        ConfigError,
        match=r"is not a cost; write multiply-accumulates as 2\.0GMAC, time as 15ms, or looks as 3locations",
    ):
        parse_cost(text)


def test_turns_are_the_locations_after_which_an_image_can_be_left():
    assert turns((3, 2), 1) == [(), (1, 2), (2, 2), (3, 2)]
    assert turns((5,), 2) == [(), (2,), (4,), (5,)] and turns((), 1) == [()]


def test_images_leave_as_soon_as_they_are_sure(model):
    images = torch.rand(6, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ends = turns((3, 1), 1)
        sure = torch.stack([model.task.confidence(model(images, end).logits) for end in ends], 1)
        for threshold in (0.0, float(sure[:, :3].median()), 2.0):
            seen = look_until(model, images, threshold, (3, 1), contributions=True)
            for i, one in enumerate(seen):
                reached = [t for t in range(len(ends)) if float(sure[i, t]) >= threshold]
                end = ends[reached[0] if reached else -1]
                torch.testing.assert_close(one.logits, model(images[i : i + 1], end)[0].logits, rtol=1e-4, atol=1e-5)
                assert one.locations == sum(np.cumprod(end))


@pytest.mark.parametrize("name", ["tnet", "saccader", "saccader_separate"])
def test_what_is_left_after_the_first_look_costs_no_more(name):
    options = (
        {"backbone": "test_efficientnet", "base_size": 32}
        if name == "tnet"
        else {"backbone": "test_bagnet_lowd", "image_size": 45}
    )
    options |= {"classifier": "test_resnet", "glimpse_size": 32} if name == "saccader_separate" else {}
    model = create_model(name, num_classes=3, locations=(2,), **options).eval()
    for threshold, locations in ((0.0, ()), (2.0, (2,))):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            look_until(model, torch.rand(1, 3, 90, 90), threshold)
        spent, told = counter.get_total_flops() // 2, count_cost(model, 90, locations).macs
        # Logits on the way, and contributions, are a few products more.
        assert told <= spent <= 1.01 * told


def test_what_is_not_looked_at_is_not_read(model, tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(512, 512), levels=4)
    read = {}
    for threshold in (0.0, 2.0):
        with open_image(tmp_path / "a.tif") as image, torch.inference_mode():
            read[threshold] = int(look_until(model, ImageViews([image]), threshold).bytes_read[0])
    assert read[0.0] < read[2.0]


def test_rows_say_what_each_image_cost(model, folder):
    ends = {}
    for threshold in (0.0, 2.0):
        until = Exit("x", threshold, (2, 1), 1, 0.0, "macs", 1)
        ends[threshold] = predict(model, folder, until=until, device="cpu").rows
    fixed = [predict(model, folder, locations=locations, device="cpu").rows for locations in ((), (2, 1))]
    for rows, expected in zip(ends.values(), fixed, strict=True):
        assert [(r["locations"], r["macs"], r["label"]) for r in rows] == [
            (r["locations"], r["macs"], r["label"]) for r in expected
        ]


def test_costs_are_told_as_they_are_typed():
    assert [format_cost(*parse_cost(text)) for text in ("1.93GMAC", "10.9MMAC", "2kMAC", "15ms", "3locations")] == [
        "1.93GMAC",
        "10.9MMAC",
        "2kMAC",
        "15ms",
        "3locations",
    ]
    assert format_cost(12.0, "macs") == "12MAC"


def test_several_exits_are_stored(tmp_path):
    one, other = (
        Exit("3locations", 0.7, (4, 1), 1, 2.9, "locations", 50),
        Exit("5ms", 0.9, (4, 1), 2, 4.9, "ms", 50, "abc", "32", 8, "a machine"),
    )
    write_exits(tmp_path, [one])
    write_exits(tmp_path, [other])
    assert read_exits(tmp_path) == [one, other]
    # Another solution, for another spelling and other conditions.
    again, elsewhere = replace(one, budget="3.0 locations", threshold=0.6), replace(other, machine="another machine")
    write_exits(tmp_path, [again, elsewhere])
    assert read_exits(tmp_path) == [again, other, elsewhere]
    for damaged in ("{", json.dumps({"a": {"threshold": 1}}), json.dumps([{"threshold": 1}])):
        (tmp_path / "exits.json").write_text(damaged)
        with pytest.raises(RunError, match=r"exits.json: is damaged or not a file of foveal \(.*\); delete it"):
            read_exits(tmp_path)
