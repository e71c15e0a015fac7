"""Batches of one image, of which batch norm may see a single value per channel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.data import get_data
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.images import as_views
from foveal.models import create_classifier
from foveal.recipes.fit_config import fit_config
from foveal.training.norms import takes_one_image
from tests.training.processes import by_torchrun, run_together
from tests.training.tiny import NORM_FREE, config

ROOT = Path(__file__).parents[2]
POINT = {"name": "test_resnet", "image_size": 16}  # its last maps are a single pixel
MODELS = [
    ({"name": "test_resnet", "image_size": 16}, ("greedy",)),
    ({"name": "test_resnet", "image_size": 32}, ("greedy",)),
    ({"name": "test_resnet", "image_size": 64}, ("greedy",)),
    ({"name": "tnet", "backbone": "test_efficientnet", "base_size": 16, "locations": [2]}, ("random",)),
    ({"name": "tnet", "backbone": "test_efficientnet", "base_size": 16, "locations": [2]}, ("sampled", "greedy")),
    (
        {
            "name": "tnet",
            "backbone": "test_efficientnet",
            "base_size": 64,
            "locations": [2, 1],
            "level_statistics": True,
        },
        ("sampled",),
    ),
    (
        {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": [3]},
        ("exhaustive", "ordered_logits"),
    ),
    ({"name": "ram", "locations": [2], "in_chans": 3}, ("sampled",)),
    (NORM_FREE, ("sampled",)),
]


@pytest.mark.parametrize(("options", "plan"), MODELS)
def test_it_says_what_torch_will_say(options, plan):
    """On noise, not on the black image that it tries itself; and leaves weights, statistics and randomness as they
    were.
    """
    torch.manual_seed(0)
    model = create_classifier(
        options["name"], num_classes=3, **{k: v for k, v in options.items() if k != "name"}
    ).train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    said = takes_one_image(model, plan)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not module._forward_pre_hooks for module in model.modules())
    try:
        model.rollouts(as_views(torch.rand(1, 3, 40, 50)), plan, Draws(0, 0, np.zeros(1, dtype=np.int64)))
        works = True
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)
        works = False
    assert said == works


def test_norms_in_evaluation_mode_do_not_count():
    model = create_classifier("test_resnet", num_classes=3, image_size=16)
    assert not takes_one_image(model.train(), ("greedy",)) and takes_one_image(model.eval(), ("greedy",))


def one_good_image(epochs: int = 2) -> tuple[dict, list[int]]:
    """Changes of a configuration, with which bad files leave one image in some batches; and images of each batch."""
    data = {"name": "tiny_images", "count": 8, "val": 0}
    loader = get_data(**data).loader("train", batch_size=4, seed=3, drop_last=True)
    data["bad"] = [i for _, batch in loader.order for i in batch][1:4]
    loader = get_data(**data).loader("train", batch_size=4, seed=3, drop_last=True)
    images = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        images += [len(batch) for batch in loader]
    assert 1 in images and 4 in images
    return {"model": POINT, "data": data, "epochs": epochs, "accumulate": 1, "ema": None}, images


def test_a_batch_of_which_bad_files_left_one_image_is_left_out_and_told(tmp_path, capsys):
    changes, images = one_good_image()
    run = fit_config(config(**changes, log_every=1), tmp_path / "run")
    count = images.count(1)
    assert run.summary["left_out"] == count
    assert f"{count} batch" in capsys.readouterr().err
    steps = [int(line.split(",")[0]) for line in (run.path / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [i + 1 for i, good in enumerate(images) if good > 1]  # nothing was learned in the others


def test_statistics_are_untouched_by_a_batch_that_is_left_out(tmp_path):
    """As if the one image of it could not have been read either."""
    changes, images = one_good_image(1)
    loader, bad = (
        get_data(**changes["data"]).loader("train", batch_size=4, seed=3, drop_last=True),
        changes["data"]["bad"],
    )
    (image,) = [batch.index for batch in loader][images.index(1)].tolist()
    states = []
    for lost in (bad, [*bad, image]):
        run = fit_config(
            config(**{**changes, "data": {**changes["data"], "bad": lost}}), tmp_path / str(len(lost)), quiet=True
        )
        states.append(torch.load(run.path / "last.ckpt", weights_only=True)["state_dict"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_count_survives_resuming(tmp_path):
    changes, images = one_good_image(4)
    whole = fit_config(config(**changes), tmp_path / "whole", quiet=True)
    half = {**changes, "optimiser": {"schedule": "constant"}}
    fit_config(config(**half, steps=images.index(1) + 1), tmp_path / "half", quiet=True)
    run = fit_config(config(**half), tmp_path / "half", resume=True, quiet=True)
    assert run.summary["left_out"] == whole.summary["left_out"] == images.count(1)


def test_one_image_is_trained_on_where_norms_see_enough_of_it(tmp_path):
    changes, _ = one_good_image()
    run = fit_config(
        config(**{**changes, "model": {"name": "test_resnet", "image_size": 64}}), tmp_path / "run", quiet=True
    )
    assert run.summary["left_out"] == 0
    run = fit_config(
        config(epochs=None, steps=2, accumulate=1, ema=None, batch_size=1, model=NORM_FREE),
        tmp_path / "free",
        quiet=True,
    )
    assert run.summary["step"] == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"batch_size": 1},
            "batch_size: 1 leaves one image, of which batch norm in test_resnet gets .*; set `batch_size` to 2 or more",
        ),
        (
            {"data": {"name": "tiny_images", "count": 1}},
            "tiny_images: 1 training image leaves one image, of which .*; add images",
        ),
        (
            {"batch_size": 2, "devices": 2},
            "batch_size: 2 leaves one image for each device, .*; set `batch_size` to 4 or more",
        ),
    ],
)
def test_batches_that_never_hold_more_than_one_image_get_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        fit_config(config(model=POINT, **changes), tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())


def test_two_processes_count_together(tmp_path):
    changes = {"model": POINT, "accumulate": 1, "ema": None, "epochs": 2, "batch_size": 6, "devices": 2}
    changes["data"] = {"name": "tiny_images", "count": 12, "bad": [0, 1, 2, 3], "val": 0}
    order = get_data(**changes["data"]).loader("train", batch_size=6, seed=3, drop_last=True).order
    alone = 0
    for order.epoch in range(2):
        for _, batch in order:
            alone += sum(sum(i not in (0, 1, 2, 3) for i in batch[rank::2]) == 1 for rank in range(2))
    assert alone
    ended = run_together(tmp_path, by_torchrun(1, 2), changes)
    assert [end.code for end in ended] == [0, 0], ended
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["left_out"] == alone
