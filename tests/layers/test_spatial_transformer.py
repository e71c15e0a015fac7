"""The spatial transformer in reduced precision. Other tests are those of `stn_cnn`."""

import torch
from torch import nn

from foveal.layers import SpatialTransformer


def test_under_autocast_theta_is_found_in_float32():
    torch.manual_seed(0)
    transform = SpatialTransformer(3).eval()
    last, seen = transform.localisation[-1], []
    nn.init.normal_(last.weight)
    last.register_forward_hook(lambda _, given, theta: seen.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        theta = transform.locate(torch.randn(2, 3, 32, 32))
    assert seen[0].dtype == torch.bfloat16 and theta.dtype == torch.float32
    expected = nn.functional.linear(seen[0].float(), last.weight, last.bias)
    torch.testing.assert_close(theta.flatten(1), expected, rtol=1e-6, atol=1e-6)
