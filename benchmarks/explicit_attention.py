"""Cost of explicitly modelled attention compared with the N x N form, with attention augmentation, and in a whole
network.

Each of the four questions measures its alternatives in alternation in one run. In (a) to (c) every form is called once
more immediately before it is timed, because the dense map is larger than the caches and would slow down the following
call. In (a) `unsettled` is the ratio without this.

(a) mixing: forward and backward of the averaging only, including the computation of the map: dense, separable, and as
`auto` chooses

(b) branch: forward and backward of the attention branch only, including its 1x1 convolutions: dense, separable, as
`auto` chooses, and attention augmentation (d_k = 160 in 8 heads, values a multiple of 8), on the grids of a ResNet;
time and peak memory

(c) layer: forward and backward of the layer, relative to those of the 3x3 convolution that it replaces

(d) step: one SGD step of expatt_resnet50, relative to one of resnet50 with the same batch

    python benchmarks/explicit_attention.py mixing branch layer step --out benchmarks/results/explicit_attention.json
    python benchmarks/explicit_attention.py mixing branch layer step --device cuda --batch 1 16 128 --step-batch 128

Memory is the peak of torch's allocator during a step, minus its memory before the step. Memory allocated by libraries
is not included.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from harness import in_turn, milliseconds, ratio, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import foveal.backbones  # noqa: F401  registers the named models
from foveal.layers import ExplicitAttention

WIDTHS = {56: 64, 28: 128, 14: 256, 7: 512}
SHARE, HEADS = 0.1, 8
LARGEST = 4 * 2**30


def branches(grid: int, batch: int) -> dict[str, nn.Module]:
    """The forms of the attention branch, without a parallel convolution."""
    from foveal.layers import AttentionAugmentation

    width = WIDTHS[grid]
    values = int(SHARE * width)
    made: dict[str, nn.Module] = {
        i: ExplicitAttention(width, values, ratio=1, impl=i) for i in ("dense", "separable", "auto")
    }
    if 4 * batch * HEADS * grid**4 <= LARGEST:
        made["augmentation"] = AttentionAugmentation(
            width, max(HEADS, values // HEADS * HEADS), size=(grid, grid), ratio=1, heads=HEADS
        )
    return made


def once(module: nn.Module, x: Tensor, precision: str) -> Callable[[], None]:
    """A forward and a backward pass of a module, including the gradient of its input as inside a network."""

    def task() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = module(x)
        out.backward(torch.ones_like(out))
        # At the end, so every call starts with the same memory.
        module.zero_grad()
        x.grad = None

    return task


def peak_bytes(task: Callable[[], None], device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def compare(
    modules: dict[str, nn.Module],
    grid: int,
    args: argparse.Namespace,
    batch: int,
    channels: int | None = None,
    settle: bool = True,
) -> tuple[dict, dict[str, int]]:
    """Times and peak bytes of forward and backward of each module on the same input, which has the channels of the
    ResNet by default."""
    x = (
        torch.randn(batch, channels or WIDTHS[grid], grid, grid, device=args.device)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    tasks = {
        n: once(m.to(args.device, memory_format=torch.channels_last), x, args.precision) for n, m in modules.items()
    }
    times = in_turn(tasks, seconds=args.seconds, device=args.device, settle=settle)
    return times, {name: peak_bytes(task, args.device) for name, task in tasks.items()}


def mixing(args: argparse.Namespace) -> Iterator[dict]:
    for grid in args.grids:
        values = int(SHARE * WIDTHS[grid])
        for batch in args.batch:
            layers = {
                i: ExplicitAttention(values, values, ratio=1, impl=i, output_projection=False)
                for i in ("dense", "separable", "auto")
            }
            for layer in layers.values():
                layer.value = nn.Identity()
            row = {"grid": grid, "values": values, "batch": batch} | forms(*compare(layers, grid, args, batch, values))
            cold, _ = compare({i: layers[i] for i in ("dense", "separable")}, grid, args, batch, values, settle=False)
            yield row | {"unsettled": ratio(cold["dense"], cold["separable"])}


def forms(times: dict[str, Any], peaks: dict[str, int]) -> dict[str, Any]:
    """Ratios between the forms."""
    faster = min(("dense", "separable"), key=lambda impl: milliseconds(times[impl]))
    return {
        "ms": {name: milliseconds(t) for name, t in times.items()},
        "peak_bytes": peaks,
        "dense_over_separable": ratio(times["dense"], times["separable"]),
        "auto_over_faster": ratio(times["auto"], times[faster]),
        "peak_dense_over_separable": round(peaks["dense"] / peaks["separable"], 2),
    }


def branch(args: argparse.Namespace) -> Iterator[dict]:
    for grid in args.grids:
        for batch in args.batch:
            times, peaks = compare(branches(grid, batch), grid, args, batch)
            row = {"grid": grid, "values": int(SHARE * WIDTHS[grid]), "batch": batch} | forms(times, peaks)
            if "augmentation" in times:
                row["augmentation_over_auto"] = ratio(times["augmentation"], times["auto"])
                row["peak_augmentation_over_auto"] = round(peaks["augmentation"] / peaks["auto"], 2)
            else:
                row["note"] = "augmentation left out: its logits alone would take more than 4 GiB"
            yield row


def layer(args: argparse.Namespace) -> Iterator[dict]:
    for grid in args.grids:
        for batch in args.batch:
            width = WIDTHS[grid]
            times, peaks = compare(
                {
                    "layer": ExplicitAttention(width, width, ratio=SHARE),
                    "convolution": nn.Conv2d(width, width, 3, padding=1, bias=False),
                },
                grid,
                args,
                batch,
            )
            yield {
                "grid": grid,
                "width": width,
                "batch": batch,
                "ms": {name: milliseconds(t) for name, t in times.items()},
                "peak_bytes": peaks,
                "layer_over_convolution": ratio(times["layer"], times["convolution"]),
            }


def training_step(model: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    target = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(images), target)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def step(args: argparse.Namespace) -> Iterator[dict]:
    images = torch.randn(args.step_batch, 3, args.side, args.side, device=args.device).to(
        memory_format=torch.channels_last
    )
    tasks = {}
    for name in args.nets:
        model = timm.create_model(name).train().to(args.device, memory_format=torch.channels_last)
        tasks[name] = training_step(torch.compile(model) if args.compile else model, images, args.precision)
    times = in_turn(tasks, seconds=args.seconds, device=args.device)
    yield {
        "nets": args.nets,
        "side": args.side,
        "batch": args.step_batch,
        "compile": args.compile,
        "ms": {name: milliseconds(t) for name, t in times.items()},
        "peak_bytes": {name: peak_bytes(task, args.device) for name, task in tasks.items()},
        "augmented_over_plain": ratio(*(times[name] for name in args.nets)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=("mixing", "branch", "layer", "step"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--grids", type=int, nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--nets", nargs=2, default=["expatt_resnet50", "resnet50"], metavar=("AUGMENTED", "PLAIN"))
    parser.add_argument("--side", type=int, default=224, help="of the images of the step")
    parser.add_argument("--step-batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="compile the networks of the step")
    parser.add_argument("--seconds", type=float, default=10, help="for each case")
    parser.add_argument("--out", help="JSON file for the results")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = []
    for question in args.questions:
        for row in {"mixing": mixing, "branch": branch, "layer": layer, "step": step}[question](args):
            results.append({"question": question, "precision": args.precision} | row)
            print(json.dumps(results[-1]), flush=True)
            write(args.out, results, device=args.device)


if __name__ == "__main__":
    main()
