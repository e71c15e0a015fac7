import pytest
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage
from foveal.glimpse.tnet import TNet
from foveal.models import create_classifier
from foveal.prediction.cost import count_cost
from foveal.prediction.device import autocast, find_device
from foveal.runs import ModelInfo, Run, save_model


class Small(nn.Module):
    in_chans = 2
    num_classes = 5

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_a_dense_network_by_hand():
    cost = count_cost(Small(), (6, 10))
    assert cost.macs == 6 * 10 * 4 * 2 * 9 + 4 * 5
    assert cost.parameters == 4 * 2 * 9 + 4 + 4 + 4 * 5 + 5
    assert cost.parameters_and_statistics == cost.parameters + 7 + 4 + 4


def test_a_dense_network_that_looks_once_costs_the_same_for_any_image():
    model = WholeImage(Small(), image_size=8)
    assert count_cost(model, 8).macs == count_cost(model, (500, 90_000)).macs == count_cost(Small(), 8).macs


def test_cost_follows_looks_and_not_the_image():
    model = TNet(num_classes=3, backbone="test_efficientnet", base_size=32, locations=(2, 1))
    macs = {locations: count_cost(model, 128, locations).macs for locations in [(), (1,), (2,), (2, 1)]}
    assert count_cost(model, 60_000, (2, 1)).macs == macs[2, 1]
    assert count_cost(model, 128).macs == macs[2, 1]
    looks = macs[2,] - macs[1,]
    # One more look without a grid of its own; the last of two levels has none either, but the first then scores two
    # grids more.
    assert 0 < looks < macs[1,]
    assert macs[2, 1] > macs[2,] + 2 * looks


def test_counting_leaves_the_model_as_it_was():
    model = TNet(num_classes=3, backbone="test_efficientnet", base_size=32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_cost(model, 64)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_by_name_and_run_folders(tmp_path):
    model = create_classifier("tnet", num_classes=3, backbone="test_efficientnet", base_size=32, locations=(2,))
    save_model(tmp_path, model, ModelInfo(model.spec, ("a", "b", "c")))
    of_model = count_cost(model, 256)
    assert count_cost(tmp_path, 256) == count_cost(str(tmp_path), 256) == count_cost(Run(tmp_path), 256) == of_model
    assert count_cost("test_resnet", 64).macs == count_cost(create_classifier("test_resnet").dense(), 64).macs


@pytest.mark.parametrize(
    "model, size, sentence",
    [
        (7, 64, "`model`: an object of the type int was given; give a network, a model's name, or the path"),
        ("tnett", 64, "^tnett: [^\n]*tnet"),
        (Small(), 0, "`image_size` 0: is not a whole number from 1; give one"),
        (Small(), (1, 2, 3), "`image_size` .* is not a size; give a side"),
        (Small(), "64", "`image_size` 64: is not a size; give a side"),
    ],
)
def test_costs_of_nothing(model, size, sentence):
    with pytest.raises(ConfigError, match=sentence):
        count_cost(model, size)


def test_an_image_that_a_network_does_not_take():
    class Picky(Small):
        def forward(self, x):
            assert x.shape[-1] == 8, "only eight columns"
            return super().forward(x)

    with pytest.raises(ConfigError, match=r"Picky: does not take images of 9 x 9 px \(only eight columns\)"):
        count_cost(Picky(), 9)


def test_devices_and_precisions_that_are_none():
    with pytest.raises(ConfigError, match="`device` gpu9"):
        find_device("gpu9")
    with pytest.raises(ConfigError, match="`precision` 8"):
        autocast("8", torch.device("cpu"))
