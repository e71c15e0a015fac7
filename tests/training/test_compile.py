"""Compilation reaches the backbone, in whatever parts it is called, and changes no result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.models import create_classifier
from foveal.recipes.fit_config import fit_config
from tests.training.test_fit import last
from tests.training.tiny import NORM_FREE, config

MODELS: dict[str, dict[str, Any]] = {
    "tnet": {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]},
    "tnet_vit": {"name": "tnet", "backbone": "test_vit", "base_size": 32, "locations": [2]},
    "saccader": {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": [3]},
    "dram": {"name": "dram", "backbone": "norm_free_16", "base_size": 16, "image_size": 48, "locations": [2]},
    "dense": {"name": "test_resnet", "image_size": 32},
}


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """Number of convolutions and attentions in each graph that is compiled. They are run as they are."""
    found: list[int] = []

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        found.append(sum("conv2d" in name or "scaled_dot_product" in name for name in names))
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **_: compiled(*args, backend=record))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name", [name if name == "tnet" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_whole_backbone_is_in_one_graph(graphs, name):
    torch.manual_seed(0)
    model = create_classifier(**MODELS[name], num_classes=3).train()
    images = torch.rand(3, 3, 64, 64)
    policy = "greedy" if name == "dense" else "sampled"

    def outcome() -> list[torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        (rollout,) = model.rollouts(images, (policy,), Draws(0, 0, np.arange(3)))
        rollout.logits.square().sum().backward()
        return [rollout.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = outcome()
    model.compile_backbone()
    assert not graphs
    found = outcome()
    backbone = model.network if name == "dense" else model.backbone
    layers = sum(isinstance(m, torch.nn.Conv2d) for m in backbone.modules())
    assert max(graphs) >= layers - 1 and len(graphs) <= 3  # DRAM's head is not in it
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    count = len(graphs)
    outcome()
    assert len(graphs) == count  # compiled once


def test_a_compiled_run_is_the_same_run(graphs, tmp_path):
    plain, compiled = (
        fit_config(config(model=NORM_FREE, compile=on), tmp_path / str(on), quiet=True).path for on in (False, True)
    )
    assert graphs and max(graphs) == 2
    for name, value in last(plain)["state_dict"].items():
        torch.testing.assert_close(last(compiled)["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_model_without_a_backbone():
    with pytest.raises(ConfigError, match=r"^compile: ram has no backbone; leave it out$"):
        create_classifier("ram", num_classes=3).compile_backbone()
