"""Convert MobileNetV2 from an archive of eight-bit weights to timm's ``mobilenetv2_100`` with ``pad_type="same"``.

The NumPy archive contains the 52 convolutions and the classifier in forward order, with folded batch norms: ``wNN``
int8 (out, in, h, w), ``sNN`` a float scale and ``bNN`` a float bias for each output. The archived network expects
images from -1 to 1; the converted network expects the normalisation of timm.

A folded network cannot be trained directly, because new batch norms would normalise twice. Each batch norm therefore
gets the mean and the variance of its convolution on some images, and a gain and a bias that undo them, so the outputs
stay the same.

    python benchmarks/mobilenet_int8.py weights.npz --images photos/train --out mobilenetv2.safetensors
    foveal fit --data.root photos --model mobilenetv2_100 --model.pad_type same --model.pretrained
    mobilenetv2.safetensors
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal import open_image
from foveal.data.folder import list_images
from foveal.files import replacing
from foveal.images import as_views

SIDE = 224
LEAST_VARIANCE = 1e-3  # of channels that are nearly constant on these images, but may vary on others


def convert(file: str | os.PathLike[str]) -> nn.Module:
    """The network in evaluation mode, with batch norms that only add the biases.

    Raises:
        ValueError: the archive does not belong to this network.
    """
    network = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with np.load(file, allow_pickle=False) as archive, torch.no_grad():
        for i, layer in enumerate([*layers, network.classifier]):
            try:
                kernel, scale, bias = (torch.from_numpy(archive[f"{part}{i:02d}"].astype(np.float32)) for part in "wsb")
                weight = (kernel * scale[:, None, None, None]).view_as(layer.weight)
            except (KeyError, RuntimeError) as error:
                raise ValueError(
                    f"{file}: layer {i} is not one of MobileNetV2's ({error}); give the archive of that network"
                ) from error
            if i == 0:
                mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
                bias = bias + (weight * (2 * mean - 1)).sum((1, 2, 3))
                weight = weight * 2 * std
            layer.weight.copy_(weight)
            if i == len(layers):
                layer.bias.copy_(bias)
                continue
            norms[i].bias.copy_(bias)
            norms[i].running_var.fill_(1 - norms[i].eps)
    return network


@torch.no_grad()
def unfold(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of each batch norm to those of its input on normalised images, (B, 3, h, w) each. The outputs
    stay the same."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1).double()
        sums[norm].append(
            torch.stack([values.sum(1), values.square().sum(1), torch.full((len(values),), float(values.shape[1]))])
        )

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for batch in batches:
        network(batch)
    for norm, hook in zip(norms, hooks, strict=True):
        hook.remove()
        total, squares, count = torch.stack(sums[norm]).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=LEAST_VARIANCE)
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias.copy_(norm.bias + gain * (mean - norm.running_mean))
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def look_at(paths: Sequence[str], network: nn.Module, side: int = SIDE, batch_size: int = 32) -> Iterable[Tensor]:
    """Whole images with the normalisation of the network."""
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    for start in range(0, len(paths), batch_size):
        views = as_views([open_image(path) for path in paths[start : start + batch_size]])
        boxes = np.concatenate([np.zeros((len(views), 2)), views.sizes], axis=1)
        yield (views.look(np.arange(len(views)), boxes, (side, side)) - mean) / std


def write(file: str | os.PathLike[str], images: Sequence[str], out: Path) -> None:
    """Convert an archive to a weights file for ``--model.pretrained``.

    Args:
        file: the archive.
        images: a few hundred training images for the statistics of the batch norms.
        out: a ``.safetensors`` file.
    """
    network = convert(file)
    unfold(network, look_at(images, network))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as unfinished:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, unfinished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--images", required=True, help="folder of training images")
    parser.add_argument("--count", type=int, default=256, help="images to take, spread evenly over the folder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths = list_images(args.images)
    write(args.archive, paths[:: max(1, len(paths) // args.count)][: args.count], args.out)
    print(f"{args.out} is written")


if __name__ == "__main__":
    main()
