"""A run that begins with another one's weights, and trains a part of the model."""

from __future__ import annotations

import pytest
import torch

from foveal.errors import ConfigError, RunError
from foveal.recipes.fit_config import fit_config
from tests.training.tiny import config

SACCADER = {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": [3]}


def stage(out, objective=None, model=SACCADER, **options):
    lr = {"optimiser": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-2}}
    options = {"epochs": None, "steps": 2, "ema": None, **lr, **options}
    return fit_config(config(model=model, objective=objective, **options), out, quiet=True)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The three stages, each with the weights of the previous one."""
    folder = tmp_path_factory.mktemp("stages")
    first = stage(folder / "1", {"name": "cross_entropy", "policy": "exhaustive"})
    second = stage(folder / "2", {"name": "saccader_locations"}, init_from=str(first.path))
    third = stage(folder / "3", {"pretraining": 0.0}, init_from=str(second.path))
    return [run.load_model(which="last").state_dict() for run in (first, second, third)], third


def changed(before, after) -> set[str]:
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_a_stage_leaves_what_it_does_not_train_as_it_was(stages):
    first, second, third = stages[0]
    # Neither weights nor statistics of the BagNet.
    assert changed(first, second) == {"attention", "mix", "cell", "log_scale"}
    assert {"backbone", "mix", "cell"} <= changed(second, third)


def test_stage_one_leaves_the_policy_as_it_was(stages, tmp_path):
    still = {"name": "sgd", "lr": 0.0}
    untouched = (
        stage(tmp_path / "0", {"name": "cross_entropy", "policy": "exhaustive"}, optimiser=still)
        .load_model(which="last")
        .state_dict()
    )
    assert changed(untouched, stages[0][0]) == {"backbone"}


def test_parts_that_the_other_run_lacks_begin_anew(stages, tmp_path):
    _, source = stages
    separate = {**SACCADER, "name": "saccader_separate", "classifier": "test_resnet", "glimpse_size": 32}
    run = stage(
        tmp_path / "separate", {"name": "cross_entropy", "trains": ["classifier"]}, separate, init_from=str(source.path)
    )
    weights, before = run.load_model(which="last").state_dict(), source.load_model().state_dict()
    assert float(before.pop("log_scale")) != 0 and "log_scale" not in weights  # the classifier has no scale
    assert changed(before, weights) == set() and any(name.startswith("classifier") for name in weights)


def test_weights_of_another_network_are_refused(stages, tmp_path):
    with pytest.raises(RunError, match=r"the weights do not fit the model, backbone\.stem"):
        stage(tmp_path / "other", model={**SACCADER, "backbone_options": {"stem": 32}}, init_from=str(stages[1].path))
    with pytest.raises(RunError, match="log_scale is not part of this model"):
        stage(tmp_path / "another", model={"name": "test_resnet", "image_size": 32}, init_from=str(stages[1].path))
    with pytest.raises(ConfigError, match="no group of parameters 'policy'; use backbone or location"):
        stage(tmp_path / "group", {"name": "cross_entropy", "trains": ["policy"]})
