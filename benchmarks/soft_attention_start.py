"""Why does softmax attention without a bound diverge? The first updates of ResNet-20 with attention on CIFAR-10.

The optimiser is that of ``soft_attention.py``: SGD with momentum 0.9, a learning rate that grows to 0.1 in 100 updates,
batches of 128 images in bfloat16. Images are not augmented. Every few updates these are noted, before the update: the
loss, the norm of the gradient, and of each stage the largest weight n A, and the standard deviation of what is added to
the shortcut.

    python benchmarks/soft_attention_start.py --root data/cifar10 --out benchmarks/results/soft_attention_start.json
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
from harness import write
from torch import nn
from torch.nn import functional as F

import foveal.backbones  # noqa: F401  (registers the networks)
from foveal.data.cifar import cifar10
from foveal.layers import SpatialSoftmaxAttention, attention_maps
from foveal.layers.maps import stage_of


def train(mode: str, images: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(args.seed)
    net = timm.create_model("attn_resnet20_cifar", attention_options={"mode": mode})
    net.to(memory_format=torch.channels_last)
    added: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            stage = stage_of(name)
            added[stage] = max(added.get(stage, 0.0), output.detach().float().std().item())

        return hook

    for name, module in net.named_modules():
        if isinstance(module, SpatialSoftmaxAttention):
            module.register_forward_hook(note(name))
    optimiser = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=1e-4)
    rows = []
    for step in range(args.steps + 1):
        optimiser.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 101)
        which = torch.randint(len(images), (128,))
        added.clear()
        with torch.autocast("cpu", torch.bfloat16), attention_maps(net) as maps:
            loss = F.cross_entropy(net(images[which]).float(), targets[which])
        optimiser.zero_grad()
        loss.backward()
        if step % args.every == 0:
            peaks: dict[str, float] = {}
            for name, weights in maps.items():
                peaks[stage_of(name)] = max(peaks.get(stage_of(name), 0.0), weights.max().item())
            norm = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
            rows.append(
                {"mode": mode, "step": step, "loss": round(loss.item(), 4), "gradient": round(norm.item(), 4)}
                | {"peak": {stage: round(peak, 3) for stage, peak in peaks.items()}}
                | {"added": {stage: round(size, 3) for stage, size in added.items()}}
            )
            print(rows[-1], flush=True)
        optimiser.step()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's CIFAR-10 files")
    parser.add_argument("--steps", type=int, default=40, help="updates")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(args.root, train=10_000).train
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
    images = ((data.images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    targets = torch.as_tensor(data.targets)
    rows = [row for mode in ("scaled", "bounded") for row in train(mode, images, targets, args)]
    write(args.out, rows, seed=args.seed)


if __name__ == "__main__":
    main()
