"""Write the measured numbers of the docs from the JSON files under ``benchmarks/results``.

In Markdown files this script fills the text between a pair of marks: a table on separate lines, or a figure in a
sentence.

    <!-- table: bundled -->
    <!-- end -->
    A step took <!-- value: expatt_step -->1.10<!-- end --> times as long.

    python benchmarks/render.py            fills all marks of README.md, benchmarks/README.md and docs/*.md
    python benchmarks/render.py --check    writes nothing; shows differences, and exits with 1 if there are any

Each name of a mark is a function below, which converts the content of a results file to the rows of a table, header
first, or to a text. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OPEN, END = r"<!-- *(\w+): *(\S+) *-->", "<!-- *end *-->"
MARKED = re.compile(rf"{OPEN}(.*?)({END}|(?={OPEN})|\Z)|{END}", re.DOTALL)

Number = Decimal | float  # results are read as decimals, so numbers that end in 5 are rounded exactly
Row = Sequence[object]
MARKS: dict[tuple[str, str], tuple[str, Callable[[Any], str]]] = {}  # (kind, name) -> results file, function


def table(name: str, file: str) -> Callable[[Callable[[Any], Iterable[Row]]], Callable[[Any], Iterable[Row]]]:
    """Register a function from the content of ``benchmarks/results/<file>`` to rows."""

    def register(rows_of: Callable[[Any], Iterable[Row]]) -> Callable[[Any], Iterable[Row]]:
        MARKS["table", name] = file, lambda record: f"\n{markdown(rows_of(record))}\n"
        return rows_of

    return register


def value(name: str, file: str, text_of: Callable[[Any], str]) -> None:
    MARKS["value", name] = file, text_of


# ---------------------------------------------------------------------------------------------------------------- forms


def markdown(rows: Iterable[Row]) -> str:
    head, *body = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def number(x: Number) -> str:
    """Three significant digits, or all digits before the point; two for small numbers."""
    exact = Decimal(x)
    size = abs(exact)
    return f"{exact:.2g}" if size < 0.1 else f"{exact:,.{2 if size < 10 else 1 if size < 100 else 0}f}"


def by_seed(shares: Iterable[Number | None]) -> str:
    """Shares in %, one for each seed."""
    return ", ".join("diverged" if share is None else f"{100 * share:.1f}" for share in shares)


def spread(shares: Sequence[Number | None]) -> str:
    """Mean and standard deviation over the seeds, in %; a dash where a run diverged, nothing where there was none."""
    known = [100 * Decimal(share) for share in shares if share is not None]
    if len(known) < len(shares):
        return "–"
    return f"{mean(known):.1f} ± {stdev(known):.1f}" if len(known) > 1 else "".join(f"{share:.1f}" for share in known)


def within(share: Number, trials: int) -> str:
    """A share of trials in %, with its 95 % interval of Wilson."""
    p, z = float(share), 1.959964
    middle, half = p + z * z / (2 * trials), z * (p * (1 - p) / trials + z * z / (4 * trials**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / trials) for sign in (-1, 1))
    return f"{100 * p:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def ratio(found: dict[str, Number]) -> str:
    """Median of ratios with quartiles."""
    return f"{number(found['median'])} ({number(found['q1'])} to {number(found['q3'])})"


def groups(rows: Iterable[dict], *keys: str, order: Iterable[str] = ()) -> dict[Any, list[dict]]:
    """Group rows by ``keys``, in order of first appearance; groups whose first key is in ``order`` come first."""
    found: dict[Any, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]], []).append(row)
    wanted = [name for name in order if name in found]
    return {name: found[name] for name in [*wanted, *found]}


def asked(question: str, record: Any) -> list[dict]:
    return [row for row in record["results"] if row["question"] == question]


def budget(locations: Sequence[int]) -> str:
    return f"`{','.join(map(str, locations))}`"


# --------------------------------------------------------------------------------------------------------------- tables


DEMO = (
    ("tnet", "accuracy", "TNet, a thumbnail of 48 px and two looks of 48 px at images of 256 px"),
    ("tnet", "thumbnail", "the same checkpoints, thumbnail only"),
    ("tnet", "random", "the same checkpoints, two looks at random"),
    ("thumbnail only", "accuracy", "the same network trained on thumbnails only"),
    ("random looks", "accuracy", "the same network trained with two looks at random"),
    ("dense", "accuracy", "the same backbone on the whole image"),
)
INGREDIENTS = (
    ("tnet", "accuracy", "the demo"),
    ("warm-up with random looks", "accuracy", "warm-up with random looks instead of the whole image"),
    ("no warm-up", "accuracy", "no warm-up"),
    ("detached policy", "accuracy", "the policy trains the location module alone, as published"),
    ("average pooling", "accuracy", "average pooling in the backbone instead of maximum pooling"),
    ("looks of 32 px", "accuracy", "thumbnail and looks of 32 px instead of 48 px"),
)


def trained(record: Any, rows: Sequence[tuple[str, str, str]], head: str) -> Iterator[Row]:
    """Updates and accuracies of the contenders on the bundled digits."""
    runs = groups(record["results"]["runs"], "contender")
    yield head, "updates", "seconds", "accuracy by seed, %"
    for contender, key, label in rows:
        if contender in runs:
            seconds = median(row["cpu_seconds"] for row in runs[contender])
            yield (
                label,
                f"{runs[contender][0]['steps']:,}",
                f"{seconds:.0f}",
                by_seed(row[key] for row in runs[contender]),
            )


@table("bundled", "bundled.json")
def bundled(record: Any) -> Iterator[Row]:
    return trained(record, DEMO, "trained for about the same processor time")


@table("bundled_ingredients", "bundled.json")
def bundled_ingredients(record: Any) -> Iterator[Row]:
    return trained(record, INGREDIENTS, "trained for about the same processor time")


def of_demo(record: Any) -> list[Any]:
    return groups(record["results"]["runs"], "contender")["tnet"]


OBJECTIVES = {
    "ours": "ours: what was gained over the context, unbiased",
    "ours, every budget": "the same, averaged over the budgets up to the one spent",
    "leave-one-out credit": "what the rest loses without it (biased)",
    "published reward, sampled": "the published reward, right or wrong, on sampled looks",
    "published": "the published objective as it is: top-k for a sample, unit-norm scores",
    "random looks": "nothing: looks at random throughout",
    "probability to come": "probability of the right class, of this look and later ones",
    "gain in probability": "gain in probability of this look and later ones",
    "reward to come": "drop in cross-entropy by this look and later ones",
    "reward to come, unit-norm scores": "the same with unit-norm scores",
    "reward to come, no warm-up": "the same without the warm-up",
    "two rollouts, each the other's baseline": "two rollouts, each the other's baseline",
    "self-critical": "self-critical",
    "exhaustive teacher on 1 batch in 4": "an exhaustive teacher on one batch in four",
}


@table("objectives", "objectives.json")
def objectives(record: Any) -> Iterator[Row]:
    yield "what a look is credited with", "steps", "accuracy by seed, %", "the same checkpoints at random looks"
    for name, rows in groups(record["results"], "variant", order=OBJECTIVES).items():
        chosen, random = by_seed(row["accuracy"]["2"] for row in rows), by_seed(row["random"] for row in rows)
        yield OBJECTIVES.get(name, name), f"{rows[0]['steps']:,}", chosen, random


SOFT = {
    "plain": "plain",
    "attention, uniform control": "attention, uniform control",
    "attention, bounded": "attention, `bounded`: the default",
    "attention, bounded by 0.5": "attention, `bounded` with `bound: 0.5`",
    "attention, scaled": "attention, `scaled`",
    "attention, scaled, slower": "attention, `scaled`, at a fifth of the learning rate",
    "attention, scaled, at most 4": "attention, `scaled` with `clip: 4`",
    "attention, scaled, gradients cut": "attention, `scaled`, gradients of norm 1 at most",
    "attention, scaled, root temperature": "attention, `scaled` with `temperature: sqrt`",
    "attention, gate": "attention, `gate`, closed at the start",
}

SOFT_OTHERS = ("SE", "CBAM", "ExpAtt", "ExpAtt, radius 0.03", "ExpAtt, ratio 0.25", "ExpAtt, narrowed control")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile for means of so many values


@table("soft_attention", "soft_attention.json")
def soft_attention(record: Any) -> Iterator[Row]:
    scale = record["results"]["scale"]
    settings = f"{scale['train']:,} images, {scale['epochs']} epochs, learning rate {scale['lr']}, {scale['precision']}"
    yield "layers", settings, "test accuracy, %", "95 % over images", "by seed", "minus plain, 95 % over seeds"
    plain = {(row["depth"], row["seed"]): row["accuracy"] for row in record["results"]["runs"] if is_plain(row)}
    found = groups(sorted(record["results"]["runs"], key=lambda row: -row["depth"]), "depth", "contender")
    order = [(depth, name) for depth in dict.fromkeys(depth for depth, _ in found) for name in [*SOFT, *SOFT_OTHERS]]
    for depth, name in (key for key in order if key in found):
        rows = found[depth, name]
        shares = [row["accuracy"] for row in rows]
        told = ["", ""]
        if None not in shares:
            told[0] = over_images(float(mean(shares)), scale["test"])
            if not is_plain(rows[0]):
                told[1] = over_seeds([float(row["accuracy"] - plain[depth, row["seed"]]) for row in rows])
        yield depth, SOFT.get(name, name), spread(shares), told[0], by_seed(shares), told[1]


@table("soft_attention_start", "soft_attention_start.json")
def soft_attention_start(record: Any) -> Iterator[Row]:
    yield "mode", "update", "loss", "norm of the gradient", "largest weight, by stage", "branch, by stage"
    for row in record["results"]:
        if row["step"] in (0, 10, 15, 20, 30, 40):
            by_stage = (" / ".join(number(of) for of in row[key].values()) for key in ("peak", "added"))
            yield f"`{row['mode']}`", row["step"], f"{row['loss']:.2f}", number(row["gradient"]), *by_stage


def is_plain(row: dict) -> bool:
    return row["contender"] == "plain"


def over_images(share: float, images: int) -> str:
    """Wilson's interval of a share of images, in %."""
    z2 = 1.959964**2
    half = math.sqrt(z2 * share * (1 - share) / images + (z2 / images / 2) ** 2)
    low, high = ((share + z2 / images / 2 + sign * half) / (1 + z2 / images) for sign in (-1, 1))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def over_seeds(differences: Sequence[float]) -> str:
    """Mean of differences in points, with Student's interval over the seeds."""
    n, middle = len(differences), 100 * mean(differences)
    if not any(differences):
        return "equal"
    if n < 2:
        return f"{middle:+.1f}"
    half = 100 * STUDENT[n] * stdev(differences) / math.sqrt(n)
    return f"{middle:+.1f} ({middle - half:+.1f} to {middle + half:+.1f})"


@table("explicit_attention", "explicit_attention.json")
def explicit_attention(record: Any) -> Iterator[Row]:
    forms = (
        "mixing: dense / separable",
        "the same, in random order, without that",
        "branch: dense / separable",
        "branch: `auto` / the faster of the two",
    )
    yield "grid", "batch", *forms, "branch: attention augmentation / `auto`"
    mixing = groups(asked("mixing", record), "grid", "batch")
    for row in asked("branch", record):
        augmentation = (
            ratio(row["augmentation_over_auto"])
            if "augmentation_over_auto" in row
            else "left out: over 4 GiB of logits"
        )
        [alone] = mixing[row["grid"], row["batch"]]
        found = (
            ratio(alone["dense_over_separable"]),
            ratio(alone["unsettled"]),
            ratio(row["dense_over_separable"]),
            ratio(row["auto_over_faster"]),
        )
        yield row["grid"], row["batch"], *found, augmentation


@table("cifar_weights", "cifar_weights.json")
def cifar_weights(record: Any) -> Iterator[Row]:
    yield "", "wrong", "error, %", "published, %"
    for row in record["results"]:
        yield (
            f"ResNet-{row['depth']}",
            f"{row['wrong']:,} of {row['images']:,}",
            f"{row['error']:.2f}",
            f"{row['published']:.2f}",
        )


@table("cifar_loader", "cifar_loader.json")
def cifar_loader(record: Any) -> Iterator[Row]:
    found = record["results"]
    yield (
        f"`{found['model']}`, batches of {found['batch']}",
        "ms",
        "images / s",
        "over the step on a batch that is there",
    )
    for row in found["rows"]:
        yield row["what"], number(row["ms"]), f"{row['images_per_second']:,}", ratio(row["of_the_step"])


@table("readers", "readers.json")
def readers(record: Any) -> Iterator[Row]:
    libraries = list(record["results"][0]["compared_with"])
    yield "file", "pixels", "levels", "type", "windows", *(f"from {name}" for name in libraries)
    for row in record["results"]:
        found = row["compared_with"]
        windows = max(told["windows"] for told in found.values() if isinstance(told, dict))
        worst = (found[name]["max_difference"] if isinstance(found[name], dict) else "cannot" for name in libraries)
        yield (
            row["file"],
            "{:,} x {:,}".format(*row["size"]),
            row["levels"],
            f"{row['dtype']} x {row['channels']}",
            windows,
            *worst,
        )


@table("remote", "remote.json")
def remote(record: Any) -> Iterator[Row]:
    yield "looks", "read by", "rounds", "requests", "kB", "seconds, median (quartiles)", "times foveal's"
    for case in record["results"]["looks"]["cases"]:
        for name, one in case["methods"].items():
            seconds = f"{number(one['seconds'])} ({number(one['q1'])} to {number(one['q3'])})"
            against = "" if name == "foveal" else ratio(one["times_foveal"])
            yield case["case"], name, one["rounds"], one["requests"], number(one["bytes"] / 10**3), seconds, against


@table("remote_layouts", "remote.json")
def remote_layouts(record: Any) -> Iterator[Row]:
    yield "layout of the file", "rounds to open", "kB", "rounds of opening and a look with an index"
    for row in record["results"]["layouts"]:
        yield row["layout"], row["rounds"], number(row["bytes"] / 10**3), row["indexed_open_and_look_rounds"]


@table("remote_memory", "remote.json")
def remote_memory(record: Any) -> Iterator[Row]:
    yield "gigapixels", "side, px", "growth of the process, MiB", "requests", "kB"
    for row in record["results"]["memory"]:
        counts = row["requests"], number(row["bytes"] / 10**3)
        yield row["gigapixels"], f"{row['side']:,}", number(row["grown_mb"]), *counts


def remote_bytes(record: Any) -> str:
    """Bytes of the looks of an indexed image, as a multiple of those of their tiles."""
    looks = record["results"]["looks"]
    one = looks["cases"][0]["methods"]["foveal"]
    return number(Decimal(one["bytes"] - looks["header"]["bytes"]) / looks["bytes_of_tiles"])


value("remote_bytes", "remote.json", remote_bytes)


@table("traversal", "traversal.json")
def traversal(record: Any) -> Iterator[Row]:
    keys = "preset", "side", "batch"
    dense = groups(asked("dense", record), *keys)
    floors = "TNet / its backbone on the same crops", "the same, norms of both folded"
    yield "preset", "image, px", "locations", "batch", *floors, "dense / TNet", "MACs, dense / TNet"
    for (preset, side, batch), [row] in groups(asked("memory", record), *keys).items():
        [other] = dense[preset, side, batch]
        floors = ratio(row["tnet_over_floor"]), ratio(row["tnet_over_folded_floor"])
        yield (
            preset,
            f"{side:,}",
            budget(row["locations"]),
            batch,
            *floors,
            ratio(other["speed_up"]),
            number(other["macs_ratio"]),
        )


@table("traversal_training", "traversal.json")
def traversal_training(record: Any) -> Iterator[Row]:
    yield (
        "preset",
        "image, px",
        "locations",
        "batch",
        "TNet's step / its backbone on the same crops",
        "dense step / TNet's",
    )
    for row in asked("training", record):
        floor, dense = ratio(row["step_over_floor"]), ratio(row["dense_over_step"])
        yield row["preset"], f"{row['side']:,}", budget(row["locations"]), row["batch"], floor, dense


@table("traversal_disk", "traversal_disk.json")
def traversal_disk(record: Any) -> Iterator[Row]:
    floors = "over the backbone alone", "the same, norms of both folded"
    yield "preset", "image, px", "file, MB", "locations", "read, kB", "prediction, ms", *floors, "peak memory, MiB"
    for row in record["results"]:
        file, read, memory = row["file_bytes"] / 10**6, row["bytes_read"] / 10**3, row["peak_above_warm_kib"] / 2**10
        floors = ratio(row["prediction_over_floor"]), ratio(row["prediction_over_folded_floor"])
        cost = number(row["prediction_ms"]), *floors, number(memory)
        yield row["preset"], f"{row['side']:,}", number(file), budget(row["locations"]), number(read), *cost


SACCADER = {
    "saccader": "all three stages",
    "without stage 2": "stages 1 and 3",
    "one run": "all in one run",
    "stage 2": "stages 1 and 2",
    "stage 1": "stage 1",
    "dram": "DRAM",
}


def by_glimpses(record: Any, what: str) -> Iterator[Row]:
    """A row for each run and policy, a column for each number of glimpses; 0 is the model without a look."""
    counts = sorted({row["glimpses"] for row in record["results"]})
    yield f"{what}, %, by glimpses", "policy", *counts
    for run, rows in groups(record["results"], "run", order=SACCADER).items():
        for policy, same in groups(rows, "policy").items():
            cells = groups(same, "glimpses")
            yield (
                SACCADER.get(run, run),
                f"`{policy}`",
                *(spread([row[what] for row in cells.get(count, [])]) for count in counts),
            )


@table("saccader", "saccader.json")
def saccader(record: Any) -> Iterator[Row]:
    return by_glimpses(record, "accuracy")


@table("saccader_coverage", "saccader.json")
def saccader_coverage(record: Any) -> Iterator[Row]:
    return by_glimpses(record, "coverage")


STAGE3 = {"new stage 3": "stages 1 to 3, default", "published stage 3": "stages 1 to 3, as published"}
STAGE3 |= {"not scaled": "default without the scale", "sampled credit": "default with the credit `image`"}
STAGE3 |= {run: SACCADER[run] for run in ("one run", "stage 2", "stage 1")}
STAGE3_POLICIES = {"ordered_logits": "ordered logits", "greedy": "learned", "none": "all cells"}


@table("saccader_stage3", "saccader_stage3.json")
def saccader_stage3(record: Any) -> Iterator[Row]:
    rows = record["results"]["rows"]
    counts = sorted({row["glimpses"] for row in rows})
    yield "accuracy, %, by glimpses", "policy", *counts, "NLL at 6", "largest logit at 6", "processor time, s"
    for run, of_run in groups(rows, "run", order=STAGE3).items():
        for policy, same in groups(of_run, "policy").items():
            cells = groups(same, "glimpses")
            told = cells[0 if policy == "none" else 6]
            yield (
                STAGE3.get(run, run),
                STAGE3_POLICIES.get(policy, policy),
                *(spread([row["accuracy"] for row in cells.get(count, [])]) for count in counts),
                number(mean(row["nll"] for row in told)),
                number(mean(row["largest"] for row in told)),
                f"{mean(row['processor_seconds'] for row in told):.0f}",
            )


@table("saccader_stage3_differences", "saccader_stage3.json")
def saccader_stage3_differences(record: Any) -> Iterator[Row]:
    rows = record["results"]["differences"]
    yield "accuracy, points, by glimpses", "minus", *sorted({row["glimpses"] for row in rows})
    for row, *others in groups([{**row, "pair": (*row["first"], *row["second"])} for row in rows], "pair").values():
        shown = (
            f"{100 * one['difference']:+.1f} ({' to '.join(f'{100 * end:+.1f}' for end in one['interval'])})"
            for one in (row, *others)
        )
        names = (f"{STAGE3[run]}: {STAGE3_POLICIES[policy]}" for run, policy in (row["first"], row["second"]))
        yield *names, *shown


@table("looking_cost", "looking_cost.json")
def looking_cost(record: Any) -> Iterator[Row]:
    yield "image, px", "model", "GMACs", "ms", "peak memory, MiB", "read, kB"
    for row in record["results"]:
        found = row["measured"]
        memory = "" if not found or found["peak_memory"] is None else number(found["peak_memory"] / 2**20)
        measured = (
            (number(found["p50"]), memory, number(found["bytes_read"] / 10**3)) if found else ("counted only", "", "")
        )
        yield f"{row['side']:,}", row["model"], number(row["macs"] / 10**9), *measured


@table("scan_cost", "scan_cost.json")
def scan_cost(record: Any) -> Iterator[Row]:
    yield (
        "image, px",
        "tiles decoded, of the level",
        "read, kB",
        "share of the file",
        "seconds",
        "memory, MiB",
        "more than before the scan",
    )
    labels = {"full": "", "disc": ", 60 % of one colour"}
    rows = [(f"{row['side']:,}²{labels[row['kind']]}", row) for row in record["results"]["sizes"]]
    flat = record["results"]["one_level"]
    for label, row in [*rows, (f"{flat['side']:,}², level 0 only", flat)]:
        yield (
            label,
            f"{row['tiles_decoded']:,} of {row['tiles']:,}",
            number(Decimal(row["bytes_read"]) / 1000),
            f"1 / {number(Decimal(row['file_bytes']) / row['bytes_read'])}",
            number(row["cpu_seconds"]),
            *(f"{row[key] / 1024:.0f}" if key in row else "" for key in ("peak_kib", "added_kib")),
        )


@table("scan_spared", "scan_cost.json")
def scan_spared(record: Any) -> Iterator[Row]:
    limits = list(record["results"]["real"][0]["limits"])
    yield (
        "file",
        "`scale`",
        "level read",
        "tiles",
        "decoded without the rule",
        "with it",
        "seconds without",
        "with",
        *(f"`blank_bytes` {limit}: decoded, places lost" for limit in limits),
    )
    for row in record["results"]["real"]:
        ours, every = row["default"], row["every"]
        height, width = ours["size"]
        yield (
            f"`{row['file']}`, {height:,} x {width:,}",
            ours["scale"],
            f"1 / {number(ours['level_scale'])}",
            f"{ours['tiles']:,}",
            f"{every['tiles_decoded']:,}",
            f"{ours['tiles_decoded']:,}",
            number(every["cpu_seconds"]),
            number(ours["cpu_seconds"]),
            *(
                f"{found['tiles_decoded']:,}, {found['places_lost']} of {ours['places']}"
                if (found := row["limits"].get(limit))
                else ""
                for limit in limits
            ),
        )


for part in ("scan", "read", "score"):
    value(f"scan_cost_{part}", "scan_cost.json", lambda record, part=part: number(record["results"]["parts"][part]))
value("scan_cost_side", "scan_cost.json", lambda record: f"{record['results']['parts']['side']:,}")
value("scan_cost_device", "scan_cost.json", lambda record: record["device"])
value(
    "scan_cost_share",
    "scan_cost.json",
    lambda record: number(
        record["results"]["real"][0]["default"]["file_bytes"] / record["results"]["real"][0]["default"]["bytes_read"]
    ),
)


@table("megapixel", "megapixel.json")
def megapixel(record: Any) -> Iterator[Row]:
    budgets = list(record["results"][0]["by_budget"])
    found = ("digits found", "right where all are", "where none is")
    yield (
        "task",
        "canvas, px",
        "seed",
        "locations",
        "accuracy, %",
        "random looks",
        "thumbnail",
        *(f"at {b}" for b in budgets),
        *found,
    )
    for row in record["results"]:
        every, none = row["right_by_found"][-1], row["right_by_found"][0]
        own = [
            row["accuracy"],
            row["random"],
            row["thumbnail"],
            *(row["by_budget"][b] for b in budgets),
            row["found"],
            every,
            none,
        ]
        told = ("" if share is None else f"{100 * share:.1f}" for share in own)
        yield row["task"], f"{row['canvas']:,}", row["seed"], looks_of(row), *told


@table("megapixel_training", "megapixel.json")
def megapixel_training(record: Any) -> Iterator[Row]:
    yield "task", "canvas, px", "seed", "updates", "seconds", "seconds of processor", "seconds with the runs before"
    for row in record["results"]:
        seconds = (f"{row[key]:,.0f}" for key in ("training_seconds", "processor_seconds", "training_seconds_of_chain"))
        yield row["task"], f"{row['canvas']:,}", row["seed"], f"{row['steps']:,}", *seconds


@table("megapixel_cost", "megapixel.json")
def megapixel_cost(record: Any) -> Iterator[Row]:
    units = (("ms", 1), ("peak_memory", 2**20), ("macs", 10**6), ("bytes", 10**3))
    yield (
        "locations",
        "canvas, px",
        "ms",
        "MiB",
        "MMACs",
        "read, kB",
        "whole canvas, ms",
        "MiB",
        "MMACs",
        "kB, as pixels",
    )
    for row in record["results"]:
        costs = (number(row[kind][key] / unit) for kind in ("looking", "whole_canvas") for key, unit in units)
        yield looks_of(row), f"{row['canvas']:,}", *costs


@table("scan_trained", "scan.json")
def scan_trained(record: Any) -> Iterator[Row]:
    looks = list(record["results"]["trained"][0]["accuracy"])
    yield (
        "recipe",
        "seed",
        "updates",
        "seconds of processor",
        *(f"accuracy with {k}, %" for k in looks),
        f"random, {looks[-1]}",
        *(f"found with {k}" for k in looks),
    )
    for row in record["results"]["trained"]:
        shares = [*(row["accuracy"][k] for k in looks), row["random"][looks[-1]], *(row["found"][k] for k in looks)]
        told = [f"{100 * share:.1f}" for share in shares]
        told[: len(looks)] = [within(row["accuracy"][k], row["test_images"]) for k in looks]
        yield f"`{row['recipe']}`", row["seed"], f"{row['steps']:,}", f"{row['processor_seconds']:,.0f}", *told


@table("scan_ablation", "scan.json")
def scan_ablation(record: Any) -> Iterator[Row]:
    yield "variant", "updates", "seconds of processor", "accuracy with one look by seed, %", "mean ± deviation", "found"
    for variant, rows in groups(record["results"]["ablation"], "variant").items():
        shares = [row["accuracy"]["1"] for row in rows]
        yield (
            variant,
            f"{rows[0]['steps']:,}",
            f"{median(row['processor_seconds'] for row in rows):,.0f}",
            by_seed(shares),
            spread(shares),
            by_seed(row["found"]["1"] for row in rows),
        )


@table("scan_prediction", "scan.json")
def scan_prediction(record: Any) -> Iterator[Row]:
    yield "canvas, px", "model", "locations", "ms", "MiB", "read, kB"
    for row in record["results"]["costs"]:
        units = (("ms", 1), ("peak_memory", 2**20), ("bytes", 10**3))
        yield f"{row['canvas']:,}", row["model"], looks_of(row), *(number(row[key] / unit) for key, unit in units)


DIGIT_PX = {"1/16, two levels": 1.8, "1/8": 3.6, "1/4": 7.2}  # side of a digit in the thumbnail


def taught(record: Any, part: str) -> Iterator[Row]:
    rows = record["results"][part]
    looks = list(rows[0]["accuracy"])
    shares = (*(f"accuracy with {k}, %" for k in looks), "random, 2", *(f"found with {k}" for k in looks))
    yield (
        "thumbnail",
        "of, px",
        "digit in it, px",
        "weight of the teacher",
        "seed",
        "updates",
        "seconds of processor",
        *shares,
    )
    for row in rows:
        images = next(row[key] for key in ("test_images", "val_images") if key in row)
        yield (
            row["thumbnail"],
            f"{row['canvas']:,}",
            DIGIT_PX[row["thumbnail"]],
            "none" if row["weight"] is None else f"{row['weight']:g}",
            row["seed"],
            row["steps"],
            f"{row['processor_seconds']:,.0f}",
            *(within(row["accuracy"][k], images) for k in looks),
            f"{100 * row['random']:.1f}",
            *(f"{100 * row['found'][k]:.1f}" for k in looks),
        )


@table("coarse_from_fine", "coarse_from_fine.json")
def coarse_from_fine(record: Any) -> Iterator[Row]:
    return taught(record, "trained")


@table("coarse_from_fine_weights", "coarse_from_fine.json")
def coarse_from_fine_weights(record: Any) -> Iterator[Row]:
    return taught(record, "weights")


@table("coarse_from_fine_costs", "coarse_from_fine.json")
def coarse_from_fine_costs(record: Any) -> Iterator[Row]:
    yield "canvas, px", "model", "locations", "MMACs", "of an image without blank places", "ms", "read, kB"
    for row in record["results"]["costs"]:
        name = row["model"] if row["model"] == "scan" else f"TNet, {row['model']}"
        units = (("macs", 10**6), ("macs_full", 10**6), ("ms", 1), ("bytes", 10**3))
        costs = (number(row[key] / unit) for key, unit in units)
        yield f"{row['canvas']:,}", name, looks_of(row), *costs


PEERS = {
    "ips.reference": "`ips.reference`, blank tiles encoded once",
    "ips.reference, every tile encoded": "`ips.reference`, as published",
    "mil": "`mil`, gated",
    "dense, a quarter": "convolutional network, canvas of 375 px",
    "dense, full size": "convolutional network, canvas of 1,500 px",
}


@table("peers", "peers.json")
def peers(record: Any) -> Iterator[Row]:
    rows = groups(record["results"]["rows"], "contender")
    trained = (
        "task",
        "updates",
        "images each",
        "seconds of processor",
        "accuracy, % (95 % interval)",
        "digits in kept tiles, %",
    )
    yield "model", *trained, "ms", "MiB", "GMACs", "read, kB"
    for cost in record["results"]["costs"]:
        units = (("ms", 1), ("peak_memory", 2**20), ("macs", 10**9), ("bytes", 10**3))
        own = [number(cost[key] / unit) for key, unit in units]
        for row in rows.get(cost["contender"], [None]):
            shown: list[object] = [""] * len(trained)
            if row is not None:
                low, high = (100 * share for share in row["interval"])
                accuracy = f"{100 * row['accuracy']:.1f} ({low:.1f} to {high:.1f})"
                found = "" if row["found"] is None else f"{100 * row['found']:.1f}"
                seconds = f"{row['processor_seconds']:,.0f}"
                shown = [row["task"], row["updates"], row["batch_size"], seconds, accuracy, found]
            yield PEERS[cost["contender"]], *shown, *own


value("peers_authors", "peers.json", lambda record: number(record["results"]["authors"]["seconds_per_update"]))
value("peers_authors_updates", "peers.json", lambda record: f"{record['results']['authors']['updates_in_1400']}")


def looks_of(row: dict) -> str:
    return ",".join(map(str, row["locations"]))


def between(x: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Linear interpolation at ``x`` between points; the first interval that contains it counts. None outside of all."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if min(x0, x1) <= x <= max(x0, x1):
            return y0 if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def beside_fixed(exits: Sequence[dict], fixed: Sequence[dict], cost: str) -> str:
    """Mean gains of early exit: in accuracy over mixtures of fixed locations at equal cost, and in cost (%) at equal
    accuracy."""
    gained: list[float | None] = []
    saved: list[float | None] = []
    for row in exits:
        same = [
            (float(f[cost]), float(f["accuracy"]))
            for f in fixed
            if (f["seed"], f["batch"]) == (row["seed"], row["batch"])
        ]
        spent, accuracy = float(row[cost]), float(row["accuracy"])
        reached, needed = between(spent, same), between(accuracy, [(right, much) for much, right in same])
        gained.append(None if reached is None else 100 * (accuracy - reached))
        saved.append(None if needed is None else 100 * (1 - spent / needed))
    return f"{signed(gained, 1)}, {signed(saved, 0)} %"


def signed(values: Sequence[float | None], digits: int) -> str:
    """Mean with its sign, or a dash if a value is missing."""
    known = [value for value in values if value is not None]
    return f"{mean(known):+.{digits}f}" if len(known) == len(values) else "–"


def early_exit(task: str) -> Callable[[Any], Iterator[Row]]:
    def rows_of(record: Any) -> Iterator[Row]:
        found = [row for row in record["results"]["ways"] if row["task"] == task]
        fixed = [row for row in found if row["way"] == "fixed"]
        batches = sorted({row["batch"] for row in found})
        yield (
            "",
            "looks",
            "accuracy by seed, %",
            "MMACs",
            "beside fixed",
            *chain(*((f"ms at {b}", "beside fixed") for b in batches)),
        )
        for (way, name), rows in groups(found, "way", "name").items():
            at = groups(rows, "batch")
            one, *_ = at.values()
            cells: list[str] = []
            for cost, unit, same in (
                ("macs", 10**6, one),
                *(("processor_ms", 1, at.get(batch, [])) for batch in batches),
            ):
                cells.append(number(mean(float(row[cost]) / unit for row in same)) if same else "")
                cells.append(beside_fixed(same, fixed, cost) if same and way == "exit" else "")
            label, looks = f"early exit, {name}" if way == "exit" else name, mean(float(row["looks"]) for row in one)
            yield label, f"{looks:.2f}", by_seed(row["accuracy"] for row in one), *cells

    return rows_of


for task in ("small", "large"):
    table(f"early_exit_{task}", "early_exit.json")(early_exit(task))


def kept(record: Any) -> str:
    """Range of the share of a time budget that was used, in wall time."""
    found = [row for row in record["results"]["ways"] if row.get("budget", "").endswith("ms")]
    shares = sorted(float(row["ms"]) / float(row["budget"].removesuffix("ms")) for row in found)
    return f"{shares[0]:.1f} and {shares[-1]:.1f}"


value("early_exit_kept", "early_exit.json", kept)


@table("early_exit_turns", "early_exit.json")
def early_exit_turns(record: Any) -> Iterator[Row]:
    columns = groups(record["results"]["turns"], "task", "as")
    label = {"small": "32 px", "large": "64 px", "budget": "one more of a budget", "turn": "a turn of its own"}
    yield "images left in the batch", *(f"{label[task]}, {label[kind]}" for task, kind in columns)
    for images in sorted({row["images"] for row in record["results"]["turns"]}):
        yield (
            images,
            *(number(row["processor_ms"]) for rows in columns.values() for row in rows if row["images"] == images),
        )


def beside(rows: Sequence[dict], what: str) -> Callable[[str, str], str]:
    """Shares in % by seed, followed by those of random regions."""

    def told(key: str, random: str) -> str:
        return " (".join(by_seed(row[what][name] for row in rows) for name in (key, random)) + ")"

    return told


@table("visible", "visible.json")
def visible(record: Any) -> Iterator[Row]:
    """The recommended scale by seed, and what was measured at each scale, mean of the seeds."""
    rows = groups(record["results"], "data")
    scales = sorted({level["scale"] for row in record["results"] for level in row["levels"]})
    yield "images", "measured", *(f"scale {scale}" for scale in scales), "recommended scale, by seed", "seconds"
    for name, of_data in rows.items():
        metric = of_data[0]["metric"]
        cells = []
        for scale in scales:
            found = [
                level[metric]
                for row in of_data
                for level in row["levels"]
                if level["scale"] == scale and metric in level
            ]
            cells.append(f"{100 * mean(found):.1f}" if found else "")
        recommended = ", ".join(str(row["scale"]) for row in sorted(of_data, key=lambda row: row["seed"]))
        yield name, METRICS[metric], *cells, recommended, f"{median(row['processor_seconds'] for row in of_data):.0f}"


METRICS = {"recall_4": "recall at 4 peaks", "average_precision": "average precision", "accuracy": "accuracy"}


@table("faithfulness", "faithfulness.json")
def faithfulness(record: Any) -> Iterator[Row]:
    yield (
        "",
        "accuracy",
        "deletion",
        "insertion",
        "pointing",
        "half of the digit inside",
        "right without them",
        "right by them alone",
    )
    for (contender, way), rows in groups(record["results"], "contender", "way").items():
        deletion, insertion = beside(rows, "deletion"), beside(rows, "insertion")
        curves = deletion("auc", "auc_random"), insertion("auc", "auc_random")
        equal = deletion("accuracy", "accuracy_random"), insertion("accuracy", "accuracy_random")
        places = beside(rows, "pointing")("share", "random"), beside(rows, "inside")("half", "random")
        yield f"{POINTERS[contender]}: {way}", by_seed(row["accuracy"] for row in rows), *curves, *places, *equal


POINTERS = {"tnet": "TNet", "dense": "its backbone, dense", "attention": "ResNet-8, attention pooling"}


PHOTOGRAPHS = {
    "dense 100": "dense, 100 px",
    "dense 200": "dense, 200 px",
    "dense 400": "dense, 400 px",
    "tnet": "TNet",
    "saccader": "Saccader, separate classifier",
}
TRAININGS = {
    "pretrained": "from ImageNet's weights, %",
    "longer": "the same, trained twice as long, %",
    "scratch": "from nothing, %",
}
WAYS = {
    "none": "first look alone",
    "greedy": "looks: {}",
    "random": "looks at random: {}",
    "exit": "until sure, looks wanted: {}",
}


def photograph_ways(record: Any, training: str) -> Iterator[tuple[str, list[dict], dict[int, dict]]]:
    """Label, rows by seed, and times by batch size of each way to classify."""
    keys = "contender", "policy", "asked"
    timed = groups(record["results"].get("times", []), *keys)
    found = groups((row for row in record["results"]["rows"] if row["training"] == training), *keys)
    contenders, ways = list(PHOTOGRAPHS), list(WAYS)
    for key in sorted(found, key=lambda key: (contenders.index(key[0]), ways.index(key[1]), key[2])):
        contender, policy, asked = key
        how = "" if contender.startswith("dense") else ", " + WAYS[policy].format(f"{asked:g}")
        times = {row["batch"]: row for row in timed.get(key, []) if row["training"] == training}
        yield PHOTOGRAPHS[contender] + how, found[key], times


@table("photographs", "photographs.json")
def photographs(record: Any) -> Iterator[Row]:
    found = {training: {label: rows for label, rows, _ in photograph_ways(record, training)} for training in TRAININGS}
    yield "", *TRAININGS.values(), "looks", "MMACs", "ms, 1 at a time", "ms, 16 at a time", "of dense 400 px"
    for label, rows, times in photograph_ways(record, "pretrained"):
        shares = (spread([row["accuracy"] for row in seeds.get(label, [])]) for seeds in found.values())
        looks, macs = (mean(row[key] for row in rows) for key in ("looks", "macs"))
        ms = (number(times[batch]["ms"]) if batch in times else "" for batch in (1, 16))
        yield (
            label,
            *shares,
            f"{looks:.2f}",
            number(macs / 10**6),
            *ms,
            ratio(times[16]["of_dense_400"]) if 16 in times else "",
        )


@table("photographs_scales", "photographs.json")
def photographs_scales(record: Any) -> Iterator[Row]:
    yield "from ImageNet's weights, %", *(f"images {100 * scale + 1} to {100 * scale + 100}" for scale in range(4))
    for label, rows, _ in photograph_ways(record, "pretrained"):
        if rows[0]["policy"] in ("none", "greedy"):
            yield label, *(spread([row["by_scale"][scale] for row in rows]) for scale in range(4))


@table("photographs_training", "photographs.json")
def photographs_training(record: Any) -> Iterator[Row]:
    yield (
        "steps of 32 images, in so many seconds of processor time",
        *(title.removesuffix(", %") for title in TRAININGS.values()),
    )
    for name, trainings in groups(record["results"]["trained"], "contender", order=PHOTOGRAPHS).items():
        found = groups(trainings, "training")
        yield (
            PHOTOGRAPHS[name],
            *(training_told(found[training]) if training in found else "" for training in TRAININGS),
        )


def training_told(rows: list[dict]) -> str:
    steps = " + ".join(str(phase["steps"]) for phase in rows[0]["phases"])
    return f"{steps}, {number(mean(sum(phase['processor_seconds'] for phase in row['phases']) for row in rows))} s"


@table("photographs_comparison", "photographs_comparison.json")
def photographs_comparison(record: Any) -> Iterator[Row]:
    calibration = "NLL", "after", "ECE", "after"
    yield (
        "",
        "accuracy and its interval, %",
        "more than by random looks, points",
        *calibration,
        "parameters, M",
        "memory, MiB",
    )
    for point in record["points"]:
        contender = next(name for name in PHOTOGRAPHS if Path(point["model"]).name.startswith(name.replace(" ", "_")))
        name = PHOTOGRAPHS[contender] + (f", looks: {sum(point['locations'])}" if point["locations"] else "")
        low, high = (f"{100 * bound:.1f}" for bound in point["interval"])
        gap = (
            ""
            if point["gap"] is None
            else f"{100 * point['gap']:+.1f} ({' to '.join(f'{100 * b:+.1f}' for b in point['gap_interval'])})"
        )
        said = (f"{point[key]:.3f}" for key in ("nll", "nll_after", "ece", "ece_after"))
        costs = point["parameters"] / 10**6, point["single"]["peak_memory"] / 2**20
        yield name, f"{100 * point['accuracy']:.1f} ({low} to {high})", gap, *said, *map(number, costs)


@table("export", "export.json")
def exported(record: Any) -> Iterator[Row]:
    yield (
        "image, px",
        "threads and clock",
        "what runs TNet",
        "ms",
        "times as fast as torch",
        "times as fast as the dense network, exported too",
        "by MACs",
    )
    for row in record["results"]["rows"]:
        for name, spent in row["milliseconds"].items():
            if name.startswith("tnet, "):
                than_torch, than_dense = (row[key].get(name) for key in ("than_torch", "than_dense"))
                yield (
                    f"{row['side']:,}",
                    f"{row['threads']}, {row['clock']}",
                    name.removeprefix("tnet, "),
                    number(spent),
                    ratio(than_torch) if than_torch else "1",
                    ratio(than_dense) if than_dense else "",
                    number(row["promise"]),
                )


@table("extras", "extras.json")
def extras(record: Any) -> Iterator[Row]:
    yield "extra", "MB", "s", "largest packages, MB"
    for row in record["results"]:
        largest = sorted(row["packages"].items(), key=lambda one: -one[1])[:3]
        told = ", ".join(f"{name} {size:.0f}" for name, size in largest if size >= 1)
        yield f"`{row['extra']}`", row["megabytes"], f"{row['seconds']:.0f}", told


@table("export_accuracy", "export.json")
def exported_accuracy(record: Any) -> Iterator[Row]:
    yield "what runs TNet", "accuracy, %", "minus torch, points", "the same label, %"
    for row in record["results"]["accuracy"]:
        more, low, high = (f"{100 * value:+.2f}" for value in row["minus_torch"])
        told = f"{100 * row['accuracy']:.2f}", f"{more} ({low} to {high})", f"{100 * row['same_label']:.2f}"
        yield (row["runs"], *(told if row["runs"] != "torch" else (told[0], "", "")))


SHAPES = {
    "square": "square: everything in the square around the image",
    "letterbox": "letterbox: first look as before, cells inside the image",
    "fit": "fit: first look squashed, cells inside the image (default)",
    "squash": "squash: first look and cells squashed",
}


@table("shapes", "shapes.json")
def shapes(record: Any) -> Iterator[Row]:
    looks = (0, 1, 2, 3)
    yield (
        "",
        "looks inside the image, %",
        "image covered, %",
        *(f"AP, {k} looks" for k in looks),
        "AUROC, 2 looks",
        "accuracy, 2 looks",
    )
    found = groups(
        (row for row in record["results"]["rows"] if row["images"] == "unseen" and row["policy"] == "greedy"),
        "way",
        "looks",
    )
    for way, label in SHAPES.items():
        two = found[way, 2]
        areas = (f"{100 * mean(row[key] for row in two):.0f}" for key in ("inside", "covered"))
        precision = (spread([row["average_precision"] for row in found[way, k]]) for k in looks)
        yield label, *areas, *precision, *(spread([row[key] for row in two]) for key in ("auroc", "accuracy"))


@table("shapes_inside", "shapes.json")
def shapes_inside(record: Any) -> Iterator[Row]:
    yield (
        "cells that can be chosen, and how much of them is inside the image, %",
        *(f"{way}" for way in SHAPES if way != "squash"),
    )
    for image, rows in groups(record["results"]["shares"], "image").items():
        by_way = {row["way"]: row for row in rows}
        height, width = rows[0]["size"]
        for level, what in ((1, "first look"), (2, "its cells"), (3, "their cells")):
            told = (by_way[way][f"level_{level}"] for way in SHAPES if way != "squash")
            name = "world map" if image == "world" else image
            yield f"{name}, {height:,} x {width:,}: {what}", *(inside_told(found) for found in told)


def inside_told(found: dict) -> str:
    if found["looks"] == 1 or found["least"] == 1:
        return f"{100 * found['mean']:.0f}" + (f", {found['looks']} cells" if found["looks"] > 1 else "")
    return f"{100 * found['mean']:.0f} ({100 * found['least']:.0f} at least), {found['looks']} cells"


value("shapes_steps", "shapes.json", lambda record: str(record["results"]["trained"][0]["steps"]))
value(
    "shapes_seconds",
    "shapes.json",
    lambda record: number(mean(row["processor_seconds"] for row in record["results"]["trained"])),
)
value("shapes_unseen", "shapes.json", lambda record: str(record["results"]["rows"][0]["count"]))
value("shapes_cracks", "shapes.json", lambda record: str(record["results"]["rows"][0]["cracks"]))


@table("networks", "networks.json")
def networks(record: Any) -> Iterator[Row]:
    yield "family", "network", "own size, px", "dense, another size", "TNet, own size", "TNet, another size"
    for row in record["results"]:
        yield (
            row["family"],
            f"`{row['name']}`",
            row["size"],
            *(yes_or_why(row[key]) for key in ("dense_other", "tnet_own", "tnet_other")),
        )


def yes_or_why(refusal: str | None) -> str:
    """The reason of a refusal, from the parentheses of its message."""
    return "yes" if refusal is None else f"no: {refusal.partition('(')[2].rpartition(')')[0] or refusal}"


def how_many(key: str) -> Callable[[Any], str]:
    return lambda record: f"{sum(row[key] is None for row in record['results'])} of {len(record['results'])}"


value("networks_dense", "networks.json", how_many("dense_other"))
value("networks_tnet", "networks.json", how_many("tnet_other"))
value("photographs_timed", "photographs.json", lambda record: str(record["results"]["times"][0]["images"]))
value("bundled_seconds", "bundled.json", lambda record: f"{median(row['cpu_seconds'] for row in of_demo(record)):.0f}")
value("expatt_step", "explicit_attention.json", lambda record: ratio(asked("step", record)[0]["augmented_over_plain"]))
value("faithfulness_area", "faithfulness.json", lambda record: f"{100 * record['results'][0]['area']:.1f}")


# --------------------------------------------------------------------------------------------------------------- cracks


def bounded(shares: Sequence[Number]) -> str:
    """A share and its interval, in %."""
    value, low, high = (100 * share for share in shares)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


@table("cracks", "cracks.json")
def cracks(record: Any, of: dict | None = None) -> Iterator[Row]:
    yield "looks", "AP learned, %", "each seed", "AP random, %", "difference", "covered, %", "covered by random, %"
    for row in (of or record["results"])["rows"]:
        random = [bounded(row[key]) if key in row else "" for key in ("random", "gap")]
        shown = [f"{100 * row[key]:.0f}" if key in row else "" for key in ("covered", "covered_random")]
        yield row["looks"], bounded(row["learned"]), by_seed(row["single"]), *random, *shown


for _name in ("earlier", "longer"):
    table(f"cracks_{_name}", "cracks.json")(lambda record, name=_name: cracks(record, record["results"][name]))


@table("cracks_dense", "cracks.json")
def cracks_dense(record: Any) -> Iterator[Row]:
    yield "whole image at, px", "updates", "seconds", "AP, %", "each seed"
    for row in record["results"]["dense"]:
        size, seconds = " x ".join(map(str, row["size"])), f"{mean(row['processor_seconds']):.0f}"
        yield size, row["steps"], seconds, bounded(row["learned"]), by_seed(row["single"])


@table("cracks_folds", "cracks.json")
def cracks_folds(record: Any) -> Iterator[Row]:
    yield "settings", "images, cracks", "seconds", "0 looks", "1 look", "2 looks", "3 looks", "2 random looks"
    for of in record["results"]["folds"]:
        found = [f"{100 * share:.1f}" for share in (*of["learned"], of["random"])]
        yield of["settings"], f"{of['images']}, {of['cracks']}", of["seconds"], *found


@table("features", "features.json")
def features(record: Any) -> Iterator[Row]:
    yield "way", "AP, %", "each seed", "AP of the images themselves, %", "GMAC an image", "seconds a training"
    results = record["results"]
    for row in results["rows"]:
        looks = f", {row['looks']} look{'s' * (row['looks'] > 1)}" if row["looks"] else ""
        way = f"`tile_scan`, {row['level']}, scout at {row['coarse']}" if row["coarse"] else f"`mil`, {row['level']}"
        own = f"{100 * row['of_images']:.1f}" if "of_images" in row else ""
        seconds = f"{mean(row['seconds']):.0f}"
        found = bounded(row["learned"]), by_seed(row["single"]), own
        yield f"features: {way}{looks}", *found, f"{row['macs'] / 1e9:.2f}", seconds
    names = {"tnet": "TNet, 3 looks", "dense-full": "dense, 1248 x 512 px", "dense-640": "dense, 640 px"}
    for row in results["beside"]:
        name = names.get(row["name"], "dense, 224 px")
        yield f"through the backbone: {name}", bounded(row["learned"]), "", "", "", f"{mean(row['seconds']):.0f}"


@table("features_megapixel", "features_megapixel.json")
def features_megapixel(record: Any) -> Iterator[Row]:
    yield "way", "looks", "accuracy, %", "each seed", "GMAC an image", "seconds a training"
    results = record["results"]
    for row in results["rows"]:
        looks = "all tiles" if row["looks"] is None else f"{row['looks']}{', random' * (row['policy'] == 'random')}"
        low, high = (100 * share for share in row["interval"])
        found = f"{100 * row['accuracy']:.1f} ({low:.1f} to {high:.1f})"
        macs = f"{row['macs'] / 1e9:.1f}" if "macs" in row else ""
        seconds = f"{mean(row['seconds']):.0f}"
        yield f"features: `{row['name']}`", looks, found, by_seed(row["single"]), macs, seconds
    for row in results["beside"]:
        name, _, looks = row["name"].partition(", 4 ")
        accuracy = f"{100 * row['accuracy']:.1f}"
        yield f"through the backbone: {name}", "4" * bool(looks), accuracy, "", "", f"{row['seconds']:.0f}"


for level, at in (("fine", 0), ("coarse", 1)):
    value(
        f"features_megapixel_{level}",
        "features_megapixel.json",
        lambda record, at=at: f"{record['results']['features'][at]['seconds']:.0f}",
    )


@table("features_made", "features.json")
def features_made(record: Any) -> Iterator[Row]:
    yield (
        "tiles, side in px at scale",
        "tiles an image",
        "seconds to encode all",
        "AP held out, %: `mil`",
        "`tile_scan` with its scout there",
    )
    results = record["results"]
    for row in results["features"]:
        pooled, chosen = (
            [way["held_out"] for way in results["tried"] if way[key] == row["level"] and bool(way["coarse"]) == scans]
            for key, scans in (("level", False), ("coarse", True))
        )
        by_all = ", ".join(f"{100 * one['all']:.1f}" for one in pooled)
        by_scout = ", ".join(f"{100 * max(one.values()):.1f}" for one in chosen)
        yield row["level"], f"{row['tiles'] / results['images']:.0f}", f"{row['seconds']:.0f}", by_all, by_scout


@table("cracks_scales", "cracks_scales.json")
def cracks_scales(record: Any) -> Iterator[Row]:
    yield "look of a cell of 500 px", "last block, mean", "its largest 2 %", "last features, mean", "their largest 2 %"
    for row in record["results"]["rows"]:
        found = [f"{100 * row[f'{tap}.{pool}']:.1f}" for tap in ("blocks.5", "feat") for pool in ("avg", "top")]
        yield f"{500 * row['scale']:.0f} px", *found


def decided(key: str) -> Callable[[Any], str]:
    """A share of the cracks of the test images, at the threshold of the earlier run, in per cent."""
    return lambda record: f"{100 * record['results']['earlier']['decided']['classes'][0][key]:.0f}"


def of_earlier(key: str) -> Callable[[Any], Any]:
    return lambda record: record["results"]["earlier"]["threshold"][key]


value("cracks_threshold", "cracks.json", lambda record: f"{100 * of_earlier('threshold')(record):.1f}")
value("cracks_positives", "cracks.json", lambda record: str(of_earlier("positives")(record)))
value("cracks_recall", "cracks.json", decided("recall"))
value("cracks_precision", "cracks.json", decided("precision"))
for _end, _runs in (("", lambda record: record["results"]), ("_earlier", lambda record: record["results"]["earlier"])):
    value(f"cracks_seconds{_end}", "cracks.json", lambda r, of=_runs: f"{mean(of(r)['processor_seconds']):.0f}")
    value(f"cracks_seeds{_end}", "cracks.json", lambda r, of=_runs: str(len(of(r)["processor_seconds"])))
    value(f"cracks_steps{_end}", "cracks.json", lambda r, of=_runs: str(of(r)["steps"]["tnet"]))


# -------------------------------------------------------------------------------------------------------------- torture

TROUBLE = ("unnamed", "crash", "hang", "memory")


def outcomes(found: dict[str, int]) -> list[object]:
    counts = [found.get(name, 0) for name in ("right", "named", "metadata", "undetectable", "accepted", "refused")]
    return [f"{n:,}" for n in (sum(found.values()), *counts, sum(found.get(name, 0) for name in TROUBLE))]


@table("torture_mutants", "torture.json")
def torture_mutants(record: Any) -> Iterator[Row]:
    found = record["results"]["mutants"]
    yield "format", "damaged files", "right", "named", "stored", "not detectable", "accepted", "refused", "other"
    for name, counts in found["by_format"].items():
        yield name, *outcomes(counts)
    yield "all", *outcomes(found["outcomes"])


@table("torture_bad", "torture.json")
def torture_bad(record: Any) -> Iterator[Row]:
    yield "outcome", "variant", "files", "told by"
    found = groups([*record["results"]["mutants"]["bad"], *record["results"]["tiles"]["bad"]], "outcome", "variant")
    for (outcome, variant), rows in found.items():
        yield (
            outcome,
            variant,
            len(rows),
            ", ".join(sorted({name for row in rows for name in row.get("told", {})})) or "–",
        )


@table("torture_tiles", "torture.json")
def torture_tiles(record: Any) -> Iterator[Row]:
    found = record["results"]["tiles"]
    yield "tiles, damage", "damaged tiles", "right", "named", "stored", "not detectable", "accepted", "refused", "other"
    for name, counts in found["by_kind"].items():
        yield name, *outcomes(counts)
    yield "all", *outcomes(found["outcomes"])


@table("torture_kills", "torture.json")
def torture_kills(record: Any) -> Iterator[Row]:
    yield "command", "disturbed by", "its file operations", "trials", "kills", "wrong"
    for row in record["results"].get("kills", {"rows": []})["rows"]:
        yield row["job"], row["kind"], row["operations"], row["trials"], row["kills"] or "–", len(row["wrong"])


def kills_of(record: Any, command: str) -> int:
    rows = record["results"].get("kills", {"rows": []})["rows"]
    return sum(row["kills"] for row in rows if row["job"].split()[0] == command)


@table("torture_wrong", "torture.json")
def torture_wrong(record: Any) -> Iterator[Row]:
    yield "command", "disturbed by", "trials", "last words"
    rows = [
        {**row, "last": one["wrong"].splitlines()[-1][-90:]}
        for row in record["results"].get("kills", {"rows": []})["rows"]
        for one in row["wrong"]
    ]
    for (job, kind, last), found in groups(rows, "job", "kind", "last").items():
        yield job, kind, len(found), f"`{last}`"


@table("torture_variants", "torture.json")
def torture_variants(record: Any) -> Iterator[Row]:
    rows = record["results"]["variants"]
    names = list(rows[0]["others"])
    yield "format", "variant", "foveal", *names
    for row in rows:
        shown = (
            {None: "–", "cannot": "–", "as stored": "stored"}.get(row["others"][name], row["others"][name])
            for name in names
        )
        yield row["format"], row["name"], "reads" if row["foveal"] == "read" else "refuses", *shown


@table("serve", "serve.json")
def serve(record: Any) -> Iterator[Row]:
    yield (
        "TNet, 2 looks",
        "requests, answered once",
        "images/s, `predict`",
        "throughput, times that of `predict`",
        "processor ms per image, `predict`",
        "latency, s: half, 95 %",
        "memory, MiB: first, last",
    )
    for name, row in record["results"].items():
        rate, cpu, late, memory = (row[key] for key in ("images_per_second", "cpu_ms", "latency_s", "memory_mib"))
        times = row["throughput_ratio"]
        yield (
            name,
            f"{row['requests']:,}, {'all' if row['answered_once'] == row['requests'] else row['answered_once']}",
            f"{number(rate['service'])}, {number(rate['predict'])}",
            f"{times['median']:.2f} ({times['q1']:.2f} to {times['q3']:.2f})",
            f"{number(cpu['service'])}, {number(cpu['predict'])}",
            f"{number(late['p50'])}, {number(late['p95'])}",
            f"{memory['first']:,}, {memory['last']:,}",
        )


@table("streams", "streams.json")
def streams(record: Any) -> Iterator[Row]:
    yield (
        "photographs in",
        "processor ms per image: median (range)",
        "processor µs to read an image",
        "images/s",
        "processor ms to the next batch, resumed in mid-epoch",
        "it is the next batch",
        "two processes see the batches of one",
    )
    names = {
        "folder": "folders",
        "shards": "shards, foveal",
        "webdataset": "shards, webdataset",
        "litdata": "chunks, LitData",
    }
    for name, shown in names.items():
        row = record["results"]["figures"][name]
        low, high = row["cpu_ms_range"]
        yield (
            shown,
            f"{row['cpu_ms']:.2f} ({low:.2f} to {high:.2f})",
            number(row["read_cpu_us"]),
            number(row["images_per_second"]),
            number(row["resume_ms"]),
            *("yes" if row[key] else "no" for key in ("resume_exact", "same_for_two")),
        )


@table("million_workers", "distributed.json")
def million_workers(record: Any) -> Iterator[Row]:
    yield (
        "two workers and one",
        "images/s: two, one",
        "throughput of two, times one",
        "the same by processor time",
        "processor ms an image: two, one",
        "reading, deciding, writing, % of processor time",
    )
    row, ray = record["results"]["workers"], record["results"].get("ray")
    rate, cpu = row["images_per_second"], row["cpu_ms"]
    yield (
        "processes",
        f"{number(rate['two'])}, {number(rate['one'])}",
        ratio(row["throughput_ratio"]),
        ratio(row["processor_time_ratio"]),
        f"{number(cpu['two'])}, {number(cpu['one'])}",
        ", ".join(number(100 * row["shares"][key]) for key in ("reading", "deciding", "writing")),
    )
    if ray:
        rate = ray["images_per_second"]
        yield "Ray", f"{number(rate['two'])}, {number(rate['one'])}", ratio(ray["throughput_ratio"]), "", "", ""


@table("million_memory", "distributed.json")
def million_memory(record: Any) -> Iterator[Row]:
    yield "worker", "images", "MiB after the first shard", "the last", "largest", "growth in the second half per 1,000"
    for i, row in enumerate(record["results"]["workers"]["memory"], start=1):
        memory = [number(row[f"{key}_mib"]) for key in ("first", "last", "largest")]
        yield i, f"{row['images']:,}", *memory, f"{row['second_half_mib_per_1000']:.3f}"


JOBS = {"10⁹ photographs": ("photograph", 10**9, 10_000), "10⁶ slides": ("slide", 10**6, 1000)}
"""Name, number of images, and images of a shard."""
PROCESSORS = 64  # of a machine


@table("million_paper", "distributed.json")
def million_paper(record: Any) -> Iterator[Row]:
    """Measured costs of one image, shard, start and row, times their numbers."""
    parts = record["results"]["parts"]
    hour, giga = 3600, 10**9

    def each(text_of: Callable[[dict, int, Decimal], str]) -> Iterator[str]:
        for name, images, rows in JOBS.values():
            yield text_of(parts[name], images, Decimal(images) / rows)

    def manifest(kind: str) -> Callable[[dict, int, Decimal], str]:
        """Processor hours of reading a table for each shard. CSV is read from the start; a part of Parquet is."""

        def hours(_: dict, images: int, count: Decimal) -> str:
            found = parts[f"manifest_{kind}"]
            times = Decimal(images) / found["rows"] if kind == "csv" else 1
            return number(count * times * (found["open_cpu_s"] + found["shard_cpu_s"]) / hour)

        return hours

    yield "", *JOBS
    yield "pixels, looks", *each(lambda one, *_: f"{one['side']:,} px, {1 + sum(one['model']['locations'])} looks")
    yield "processor ms an image", *each(lambda one, *_: number(1000 * one["cpu_s"]))
    yield "processor hours for all", *each(lambda one, images, _: number(images * one["cpu_s"] / hour))
    yield (
        f"hours of one machine with {PROCESSORS} processors",
        *each(lambda one, images, _: number(images * one["cpu_s"] / hour / PROCESSORS)),
    )
    yield "read from the images, TB", *each(lambda one, images, _: number(Decimal(images) * one["bytes_read"] / 10**12))
    yield "shards", *each(lambda one, images, count: f"{count:,.0f} of {images / count:,.0f} images")
    yield (
        "processor hours of starts, if each shard is a process",
        *each(lambda one, images, count: number(count * parts["start_cpu_s"] / hour)),
    )
    yield "processor hours of reading the manifest, Parquet", *each(manifest("parquet"))
    yield "the same, CSV", *each(manifest("csv"))
    yield "all parts, GB", *each(lambda one, images, _: number(Decimal(images) * parts["part_bytes_a_row"] / giga))
    for kind in ("parquet", "csv"):
        row = parts[f"merge_{kind}"]["cpu_us_a_row"]
        yield (
            f"hours of merging into one file, {'Parquet' if kind == 'parquet' else 'CSV'}",
            *each(lambda one, images, _, row=row: number(images * row / 10**6 / hour)),
        )


value("torture_count", "torture.json", lambda record: f"{record['results']['mutants']['mutants']:,}")
value("torture_kinds", "torture.json", lambda record: str(record["results"]["mutants"]["variants"]))
value("torture_slowest", "torture.json", lambda record: number(record["results"]["mutants"]["slowest_seconds"]))
for command in ("fit", "predict"):
    value(f"torture_kills_{command}", "torture.json", lambda record, command=command: f"{kills_of(record, command):,}")
value("torture_memory", "torture.json", lambda record: number(record["results"]["mutants"]["most_mebibytes"]))

for stem in ("cifar_loader", "explicit_attention", "looking_cost", "traversal", "traversal_disk"):
    value(f"{stem}_device", f"{stem}.json", lambda record: record["device"])


# ---------------------------------------------------------------------------------------------------------------- files


def content(kind: str, name: str, where: str) -> tuple[str, str]:
    """Text between the marks, and the results file it comes from."""
    if (kind, name) not in MARKS:
        raise SystemExit(
            f"{where}: benchmarks/render.py knows no {kind} {name!r}; correct the mark or write the function"
        )
    file, text_of = MARKS[kind, name]
    if not (RESULTS / file).is_file():
        raise SystemExit(
            f"{where}: the {kind} {name!r} needs benchmarks/results/{file}, which is not there; run its benchmark first"
        )
    return text_of(
        json.loads((RESULTS / file).read_text(encoding="utf-8"), parse_float=Decimal)
    ), f"benchmarks/results/{file}"


def render(page: str, text: str) -> tuple[str, list[str]]:
    """The page with all marks filled, and a unified diff for each mark that changed."""
    differences: list[str] = []

    def fill(mark: re.Match[str]) -> str:
        kind, name, old, end, *_ = mark.groups()
        where = f"{page}:{text.count(chr(10), 0, mark.start()) + 1}"
        if not end:
            what = f"the mark of {kind} {name!r} is not closed" if kind else "this mark closes none"
            raise SystemExit(f"{where}: {what}; each mark needs its own <!-- end -->")
        if kind == "value" and not text[text.rfind("\n", 0, mark.start()) + 1 : mark.start()].strip():
            raise SystemExit(
                f"{where}: the value {name!r} begins a line, which Markdown takes for HTML; put a word before it"
            )
        new, source = content(kind, name, where)
        if new != old:
            lines = difflib.unified_diff(
                old.strip().splitlines(), new.strip().splitlines(), f"{page} {kind} {name}", source, lineterm=""
            )
            differences.append("\n".join(lines) or f"{page} {kind} {name}: the marks belong on lines of their own")
        return text[mark.start() : mark.start(3)] + new + end

    return MARKED.sub(fill, text), differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page differs from the results"
    )
    check = parser.parse_args().check
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    # All pages are rendered before the first is written, so an error leaves all of them unchanged.
    rendered = {page: render(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")) for page in pages}
    for page, (text, differences) in rendered.items():
        if check:
            print(*differences, sep="\n", end="\n" if differences else "")
        elif differences:
            temporary = page.with_name(page.name + ".part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(page)
            print(f"{page.relative_to(ROOT)} is written")
    return int(check and any(differences for _, differences in rendered.values()))


if __name__ == "__main__":
    raise SystemExit(main())
