"""The commands: arguments, help, the call of the library, and printed output.

Example:
    >>> list(COMMANDS)
    ['fit', 'recipes', 'visible', 'evaluate', 'threshold', 'compare', 'occlude', 'faithfulness', 'predict', ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from glob import has_magic
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.choices import (
    EXPORT_FORMATS,
    EXPORT_PRECISIONS,
    FEATURE_FORMATS,
    FORMATS,
    MEASURES,
    METRIC_NAMES,
    POLICY_NAMES,
    PRECISIONS,
    SACCADER_POLICY_NAMES,
    SPLITS,
)
from foveal.cli.arguments import Arguments, Command, argument, given, in_flags, natural, positional, positive, switch
from foveal.cli.running import (
    data_of,
    export,
    import_torch,
    keep_exits,
    make_data,
    print_failed,
    print_result,
    progress,
)
from foveal.display import printable
from foveal.errors import ConfigError, FovealError, RunError, renaming
from foveal.formats import FOLDERS, SUFFIXES
from foveal.recipes.layout import in_columns

if TYPE_CHECKING:
    from foveal.prediction import Cost, Exit
    from foveal.runs import Run

SHOWN_CLASSES = 20
"""Number of classes shown on a terminal without ``--wide``."""


COMMANDS: dict[str, Command] = {}
"""Commands by name, in the order of the help."""


def command(
    summary: str, epilog: str | Callable[[], str], arguments: Arguments, **more: Any
) -> Callable[[Callable[[Any], int]], Callable[[Any], int]]:
    """Register a function ``_name`` as the command ``name``, see `Command`."""

    def register(run: Callable[[Any], int]) -> Callable[[Any], int]:
        COMMANDS[run.__name__.strip("_")] = Command(run, summary, epilog, arguments, **more)
        return run

    return register


def find_command(name: str) -> Command | None:
    """The command of a name or alias; None if there is none."""
    return next((each for key, each in COMMANDS.items() if name in (key, *each.aliases)), None)


# -------------------------------------------------------------------------------------- arguments of several commands


def _names(names: Sequence[str], word: str = "or") -> str:
    """Names joined as in a sentence: ``a, b or c``."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def _value_range(text: str) -> tuple[float, float]:
    low, high = text.split(",")
    return float(low), float(high)


_value_range.__name__ = "range"


def _separate(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


COST = "a number with MAC, kMAC, MMAC, GMAC, TMAC, ms or locations, as 20MMAC"
POLICY = f"{_names(POLICY_NAMES)}; Saccader also knows {_names(SACCADER_POLICY_NAMES, 'and')}"
TABLES = sorted(file.stem for file in Path(__file__).parents[1].glob("evaluation/tables/*.yaml"))

RUN = positional("RUN", "run folder")
LOCATIONS = argument("looks per level, as 2,1 (default: the run's)", "LOOKS")
POLICY_OF_ONE = argument(
    f"how cells are chosen: {POLICY} (default: greedy, or random if fit found learned looks worse)", "NAME"
)
AT_ONCE = argument("with --budget: number of looks between two decisions to stop")
WIDE = switch("print all columns")
MEASURE = argument(
    "times and memory: none, in about 20 s in all, or 0.5 s and more for each number", default=None, choices=MEASURES
)  # no default, so that --budget can refuse it
HOW: Arguments = {
    "device": argument("device: cpu, cuda, cuda:1, ...; auto is the first GPU, or the CPU"),
    "precision": argument(f"numerical precision: {_names(list(PRECISIONS))}"),
    "seed": argument("seed of all random numbers", type=natural),
}
BATCH_SIZE = argument("images per batch")
JUDGES = argument(
    "other runs that also classify the changed images, such as dense networks",
    "RUN",
    name="--by",
    action="extend",
    nargs="+",
)
EVALUATION: Arguments = {
    "data_flags": argument("data set, see foveal data (default: the run's)", "NAME", name="--data"),
    "data.KEY": argument("option of the data set, see foveal fit --data NAME --help (default: the run's)", "VALUE"),
    "split": argument("images to use (default: test, or val where there is no test)", choices=SPLITS),
    "metrics": argument(
        f"metrics with commas between them: {_names(METRIC_NAMES)}, or a class of torchmetrics (default: by the task)",
        "NAMES",
        type=_separate,
        action="extend",
    ),
    "limit": argument("use N random images, drawn by the seed (default: all)"),
    "out": argument("output folder (default: the run)", "FOLDER"),
    "wide": WIDE,
    **HOW,
    "batch_size": BATCH_SIZE,
    "workers": argument("worker processes that read images", type=natural),
}
"""Arguments of all evaluations: the fields of a `foveal.evaluation.Setting`, data and output."""
WITHOUT_METRICS: Arguments = {key: value for key, value in EVALUATION.items() if key != "metrics"}
SETTING = "foveal.evaluation.protocol.Setting"


def _policies(what: str) -> dict[str, Any]:
    """The argument for further policies."""
    text = f"{what} besides the learned one and random, separated by commas: {POLICY}"
    return argument(text, "NAMES", name="--policy", type=_separate, action="extend")


# ------------------------------------------------------------------------------------------------------ fit, recipes


def _help_of_fit() -> str:
    from foveal.recipes import GROUPS, describe_recipe, list_recipes

    names = list_recipes()
    counts = {group: sum(name.startswith(f"{group}/") for name in names) for group in GROUPS}
    single = in_columns([(name, describe_recipe(name)) for name in names if "/" not in name])
    groups = in_columns([(f"{group}/", f"{counts[group]:3} {text}") for group, text in GROUPS.items()])
    return FIT.format(recipes="\n".join(single), groups="\n".join(groups))


FIT = """Every value of a recipe can also be given as a flag. foveal fit RECIPE --help explains all of them, with
the options of the chosen model and data set.

  foveal fit demo
  foveal fit demo --epochs 3 --optimiser.lr 3e-4 --out runs/short
  foveal fit --data.root photos/ --model.backbone resnet18 \\
      --model.pretrained true
  foveal fit --data.root photos/ --model efficientnet_b0    a dense network
  foveal fit --data manifest --data.file labels.csv
  foveal fit --out runs/short --resume            continue an interrupted run
  foveal fit --data folder --model tnet --help    all options of the two

Recipes:

{recipes}

Recipes of published experiments; foveal recipes NAME lists those of a group:

{groups}
"""


@command(
    "train a model by a recipe",
    _help_of_fit,
    {
        "RECIPE": positional(
            "RECIPE",
            "name from the lists below, or YAML file (default: folder, a TNet on the class folders in --data.root)",
            nargs="?",
        ),
        "out": argument("run folder (default: runs/ and the name of the recipe)", "FOLDER"),
        "resume": switch("continue the run in the folder"),
        "overwrite": switch("replace the run in the folder"),
    },
    usage="foveal fit [RECIPE] [--key value ...]",
)
def _fit(argv: list[str]) -> int:
    """Its flags depend on the recipe, the model and the data. `foveal.recipes.configure` parses them."""
    recipe, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (_recipe_of(argv), argv)
    from foveal.recipes import find_recipe

    find_recipe(recipe)  # report an unknown name before torch is imported
    import_torch()
    from foveal.host import global_rank, speaker
    from foveal.recipes.configure import configure

    processes = 2  # ranks of torchrun and Lightning do not depend on it
    try:
        config, out, how = configure(recipe, flags)
        from foveal.recipes.fit_config import fit_config
        from foveal.training import TrainingSummary

        # Lightning, torchrun and Slurm start several processes with the same command. Only the main process prints.
        processes = config.processes
        main = global_rank(processes) == 0
        quiet = how["quiet"] or not main
        logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if quiet else logging.INFO)
        run = fit_config(config, out, resume=how["resume"], overwrite=how["overwrite"], quiet=quiet)
    except FovealError as error:
        voice = speaker(processes)
        if voice is None:
            return 2 if isinstance(error, ConfigError) else 1
        error.args = (f"{voice}{error}",)
        raise
    if main and quiet and run.summary:
        TrainingSummary(**run.summary).show(out, brief=True)
    return 0


def _recipe_of(argv: Sequence[str]) -> str:
    """The default recipe: the configuration of the run with ``--resume``, else ``folder``."""
    joined = [
        text
        for word, after in zip(argv, [*argv[1:], ""], strict=True)
        for text in (f"{word}={after}", word)
        if text.startswith("--out=")
    ]
    if "--resume" in argv and joined:
        from foveal.runs import CONFIG, read_config

        config = Path(joined[0].removeprefix("--out="), CONFIG)
        if config.is_file():
            if "base" in read_config(config.parent):
                raise RunError(f"{config}: base: a run has all its values and no base; remove the line")
            return str(config)
    return "folder"


@command(
    "list recipes with descriptions",
    """One line per recipe. With --quiet, the names alone.

  foveal recipes
  foveal recipes cifar10                          a group
  foveal recipes '*saccader*'
  foveal fit cifar10/saccader --help              options of a recipe
""",
    {"pattern": positional("PATTERN", "a group, or names with * and ? (default: *)", nargs="?", default="*")},
    reads=False,
)
def _recipes(args: argparse.Namespace) -> int:
    from foveal.recipes import describe_recipe, list_recipes

    names = sorted(list_recipes(args.pattern), key=lambda name: "/" in name)
    if not names:
        raise ConfigError(f"{args.pattern}: no recipe has such a name; foveal recipes lists all")
    if args.quiet:
        print("\n".join(names))
        return 0
    groups = [list(group) for _, group in groupby(names, key=lambda name: name.rpartition("/")[0])]
    rows = [[(name, describe_recipe(name)) for name in group] for group in groups]
    print("\n\n".join("\n".join(in_columns(group, indent="")) for group in rows))
    return 0


# ------------------------------------------------------------------------------------------------------------- visible


@command(
    "find the level at which the evidence is visible, before training",
    """Images are seen at levels of 1, 2, 4, ... image pixels per pixel, down to a thumbnail. If the
data has boxes, such as a manifest with a column of them, a scout is trained at each level, for a fixed number of
updates, and its recall of objects is measured. If not, looks at each level are described by a network, and classified
by a linear classifier. The command recommends a level, and prints foveal fit with options for it, and their cost.
It takes a few minutes of one processor; fewer images and looks take less.

  foveal visible --data.root photos/
  foveal visible --data manifest --data.file labels.csv --out visible.json
  foveal visible --data.root photos/ --backbone mobilenetv2_100 \\
      --pretrained true
""",
    {
        "data.KEY": argument("option of the data set, see foveal fit --data NAME --help", "VALUE"),
        "data_flags": argument("data set, see foveal data (default: folder)", "NAME", name="--data"),
        "backbone": argument(
            "network of the suggested models which, without boxes, describes looks (default: a small one with random "
            "weights describes them)",
            "NAME",
        ),
        "pretrained": argument(
            "weights of the backbone: a file, or true for those that timm downloads (default: random ones)", "FILE"
        ),
        "look_size": argument("side of a look in pixels of the network (default: that of the backbone, or 224)"),
        "looks": argument("without boxes: number of looks at an image at each level"),
        "steps": argument("with boxes: updates of each scout"),
        "split": argument("images to use", choices=SPLITS),
        "limit": argument("most images, equally many of each class"),
        "out": argument("also write the numbers into this file, as JSON (default: none)", "FILE"),
        "wide": WIDE,
        **HOW,
        "batch_size": argument("looks per batch"),
    },
    calls=("foveal.evaluation.visibility.visible",),
)
def _visible(args: argparse.Namespace) -> int:
    from foveal.display import console
    from foveal.evaluation import visible

    if args.pretrained == "true":
        args.pretrained = True
    if args.out and Path(args.out).is_dir():
        raise ConfigError(f"`out` {args.out}: is a folder; give a file, such as {Path(args.out) / 'visible.json'}")
    data = make_data({"name": "folder"}, args.data_flags, where="--data")
    with progress("looking", args.quiet) as show:
        found = visible(data, **given(args, visible), on_progress=show)
    found.about.update(command=args.typed, data_flags=args.data_flags)
    shown = console()
    shown.print(found.table(args.wide))
    print(f"\n{found.commands(min(shown.width, 80))}")  # rich would wrap lines that a shell does not take then
    if args.out:
        found.write(args.out)
    print_failed(found.errors)
    return 1 if found.errors else 0


# ---------------------------------------------------------------------------------------------------------- evaluation


@command(
    "accuracy and cost of a trained model, by locations",
    """Writes evaluation.json, tradeoff.png and confusion.png into the run folder, or into --out. The images are those
of the run; --data and --data.KEY choose others, as for foveal fit.

  foveal evaluate runs/demo --locations 0..4
  foveal evaluate runs/demo --locations 0..3,1 --against runs/dense
  foveal evaluate runs/photos --data folder --data.root other/ --split test

Other policies, compared with the learned one:

  foveal evaluate runs/demo --policy centre,exhaustive

Early exit: stop looking at an image once the answer is certain. The budget is the mean cost of an image:

  foveal evaluate runs/demo --budget 3locations --budget 20MMAC
""",
    {
        "model": RUN,
        "locations": argument(
            "looks per level, 2,1, or a sweep of the first, 0..6 (default: 0 up to the run's own)", "LOOKS"
        ),
        "policies": _policies("policies to evaluate"),
        "budgets": argument(
            "early exit instead of equal locations: stop looking at an image once the answer is certain. The budget is "
            f"the mean cost of an image: {COST}. The threshold is found on validation images and stored in the run. "
            "May be repeated",
            "COST",
            name="--budget",
            action="append",
        ),
        "at_once": AT_ONCE,
        "against": argument("run of another model to compare with, such as a dense network", "RUN"),
        "measure": MEASURE,
        **EVALUATION,
    },
    calls=("foveal.evaluation.tradeoff.evaluate", "foveal.evaluation.thresholds.evaluate_early_exit", SETTING),
)
def _evaluate(args: argparse.Namespace) -> int:
    from foveal.evaluation import evaluate, evaluate_early_exit
    from foveal.prediction import read_exits
    from foveal.runs import Run

    args.model = run = Run(args.model)
    if not args.budgets:
        return print_result(_result(evaluate, args, run, "accuracy"), args)
    if args.policies or args.against:
        raise ConfigError(
            "--budget: early exit is compared with equal locations of the same model; leave --policy and --against out"
        )
    if args.measure:
        raise ConfigError(
            f"--measure {args.measure}: with --budget, images are timed while they are classified; leave --measure out"
        )
    read_exits(run.path)  # report a damaged file before the evaluation
    result = _result(evaluate_early_exit, args, run, "finding thresholds")
    code = print_result(result, args)
    if not args.data_flags:  # thresholds found on other data are not kept
        keep_exits(run, result.exits)
    return code


def _result(function: Callable[..., Any], args: argparse.Namespace, run: Run, what: str) -> Any:
    """The result of a function of `foveal.evaluation` on the data of a run."""
    from foveal.evaluation import Setting

    if args.out and Path(args.out).exists() and not Path(args.out).is_dir():
        raise ConfigError(f"`out` {args.out}: is a file; give a folder")
    arguments, data = given(args, function), data_of(run, args.data_flags)
    with progress(what, args.quiet) as show:
        return function(**arguments, data=data, setting=Setting(**given(args, Setting), on_progress=show))


@command(
    "decide a class by a threshold: a wanted recall, precision or specificity",
    """A class that is rare, or that must not be missed, can be predicted from another probability than the one at
which it is the most probable class. The threshold is found on the validation images of the run, for the class
against the rest. It is kept in the run: predict, explain, evaluate and foveal.load use it, until the run is trained
on. It is found at --locations; at other locations, and with --budget, the shares differ. With two classes, a new
threshold replaces the old one. Writes threshold.json and threshold.png, the shares at every threshold, into the run.

  foveal threshold runs/cracks --at recall=0.99
  foveal threshold runs/photos --at precision=0.9 --class cat
  foveal threshold runs/cracks --remove           the most probable class again
""",
    {
        "model": RUN,
        "at": argument("recall=, precision= or specificity=, and a share up to 1 (default: none)", "AIM"),
        "remove": switch("remove the thresholds of the run, or that of --class"),
        "label": argument(
            "the class (default: the rarer one of two, or every label of a multilabel model)", "NAME", name="--class"
        ),
        "locations": argument("looks per level, as 2,1 (default: the run's)", "LOOKS"),
        **WITHOUT_METRICS,
        "split": argument("images to use (default: val)", choices=SPLITS),
    },
    calls=("foveal.evaluation.decisions.fit_threshold", SETTING),
)
def _threshold(args: argparse.Namespace) -> int:
    from foveal.evaluation import fit_threshold
    from foveal.runs import Run

    args.model = run = Run(args.model)
    stored = run.card.get("thresholds", [])
    if args.remove:
        if args.at:
            raise ConfigError("`remove`: cannot be used with `at`; use one of the two")
        if args.label not in (None, *(one["label"] for one in stored)):
            raise ConfigError(f"`label` {args.label}: has no threshold in {run.path}; leave `label` out to remove all")
        run.keep_thresholds([one for one in stored if args.label not in (None, one["label"])])
        return 0
    if not args.at:
        raise ConfigError("`at`: is missing; give an aim, such as recall=0.99, or `remove`")
    result = _result(fit_threshold, args, run, "validation")
    code = print_result(result, args)
    found = [{key: getattr(one, key) for key in ("label", "threshold", "at")} for one in result.thresholds]
    labels = [one["label"] for one in found]
    # The threshold of one of two classes decides about the other, too.
    kept = [] if run.task.name == "multiclass" and len(run.class_names) == 2 else stored
    run.keep_thresholds([*(one for one in kept if one["label"] not in labels), *found])
    if args.locations and not args.quiet:
        advice = "give the same to predict, explain and evaluate"
        print(f"foveal: the threshold holds for --locations {args.locations}; {advice}", file=sys.stderr)
    return code


@command(
    "accuracy, calibration and cost of several models on the same images",
    """Arguments are run folders and names of networks. A network by name has no trained weights, so only its cost is
measured. Times are measured in alternation. Writes comparison.json and comparison.png into --out: accuracy against
MACs, time and memory, with the Pareto front marked. The images are those of the first run; --data and --data.KEY
choose others, as for foveal fit.

  foveal compare runs/demo runs/dense
  foveal compare runs/tnet runs/dense --locations 0..6 --out results/
  foveal compare runs/photos efficientnet_b0 --data folder \\
      --data.root other/ --split test
""",
    {
        "models": positional("RUN_OR_MODEL", "run folders, and names of networks, see foveal models", nargs="+"),
        "locations": argument(
            "looks per level, 2,1, or a sweep of the first, 0..6, for the models that can take as many "
            "(default: 0, and each run's own)",
            "LOOKS",
        ),
        "measure": MEASURE,
        **EVALUATION,
        "out": argument("output folder", "FOLDER", default="comparison"),
    },
    calls=("foveal.evaluation.comparison.compare", SETTING),
)
def _compare(args: argparse.Namespace) -> int:
    from foveal.evaluation import compare, first_run

    return print_result(_result(compare, args, first_run(args.models), "accuracy"), args)


@command(
    "accuracy after hiding the regions that a model looked at",
    """The model classifies each image. The regions that it looked at are replaced by the mean colour. Then the
model, and the runs of --by, classify the changed image. If the model looks at what matters, accuracy falls faster
than when random looks hide the same share of the image; random looks are always included. Writes occlusion.json and
occlusion.png, accuracy against the share hidden, into the run. The images are those of the run; --data and --data.KEY
choose others, as for foveal fit.

  foveal occlude runs/demo
  foveal occlude runs/demo --locations 1..8 --policy centre
  foveal occlude runs/demo --locations 1..4 --by runs/dense runs/other \\
      --limit 500 --out occlusion/
""",
    {
        "model": positional("RUN", "run folder of a model that chooses where to look"),
        "locations": argument(
            "looks to hide, per level, 2,1, or a sweep of the first, 1..8 (default: 1 up to the run's own)", "LOOKS"
        ),
        "policies": _policies("policies whose looks are hidden,"),
        "judges": JUDGES,
        **EVALUATION,
    },
    calls=("foveal.evaluation.occlusion.occlude", SETTING),
)
def _occlude(args: argparse.Namespace) -> int:
    from foveal.evaluation import occlude
    from foveal.runs import Run

    args.model = run = Run(args.model)
    return print_result(_result(occlude, args, run, "occluding"), args)


@command(
    "deletion, insertion and pointing game of the regions that a model highlights",
    """Regions are ranked: the boxes that a model looked at, the cells of the last attention map or of the one given
by --map, or the cells of Grad-CAM at the module given by --cam. Deletion replaces them by the mean colour, one after
another, highest first. Insertion shows only them. The probability of the predicted class should fall early in
deletion and rise early in insertion. The pointing game tests whether the highest region lies on the object, if the
data has boxes. Random regions of equal area are the baseline. Writes faithfulness.json and faithfulness.png into the
run. The images are those of the run; --data and --data.KEY choose others, as for foveal fit.

  foveal faithfulness runs/demo
  foveal faithfulness runs/demo --locations 4 --by runs/dense --limit 500
  foveal faithfulness runs/attention --map layer3
  foveal faithfulness runs/dense --cam layer4 --out gradcam/
""",
    {
        "model": RUN,
        "locations": argument("looks per level, as 2,1, of a model that looks (default: the run's)", "LOOKS"),
        "attention": argument(
            "attention map, given by its module or a part of the network (default: the last)", "NAME", name="--map"
        ),
        "cam": argument("Grad-CAM at this module; needs pip install 'foveal[cam]'", "LAYER"),
        "judges": JUDGES,
        **WITHOUT_METRICS,
    },
    calls=("foveal.evaluation.faithfulness.evaluate_faithfulness", SETTING),
    aliases=("faithful",),
)
def _faithfulness(args: argparse.Namespace) -> int:
    from foveal.evaluation import evaluate_faithfulness
    from foveal.runs import Run

    args.model = run = Run(args.model)
    return print_result(_result(evaluate_faithfulness, args, run, "hiding and showing"), args)


# ---------------------------------------------------------------------------------------------------- predict, explain


@command(
    "classify images: one row per image",
    f"""IMAGES are files, folders (with their subfolders) and patterns. An image that fails gets a row with an error;
the command continues, lists these images at the end and exits with 1.

With --out, the rows of finished batches are saved if the command is interrupted. The same command continues where it
stopped, with the same result as without the interruption. New images are appended. Images that have a row are not
predicted again; failed images are if their file has changed, or with --retry. Do not edit the table before all images
are done.

In folders, files with these suffixes are images, unless they are hidden; others are counted at the end:
{" ".join(SUFFIXES)}
A folder that ends in {" ".join(FOLDERS)} is one image.

  foveal predict runs/demo photo.png
  foveal predict runs/demo photos/ --out labels.csv
  foveal predict runs/slides scans/ 'more/**/*.svs' --locations 3,2 \\
      --out predictions.parquet

Three looks on average, more at difficult images than at easy ones:

  foveal predict runs/demo photos/ --budget 3locations

Random looks, to compare with:

  foveal predict runs/demo photos/ --policy random --seed 1

Looks as annotations, for QuPath or QGIS:

  foveal predict runs/slides scans/ --out labels.csv --looks looks/ \\
      --heatmap heatmaps/

The images of a table, and a part of them on each of many machines. Parts are joined by foveal merge:

  foveal predict runs/demo --manifest images.csv --out labels.csv
  foveal predict runs/demo --manifest images.parquet --shard 3/64 \\
      --out parts/
  foveal predict runs/demo --manifest images.parquet --cluster ray \\
      --out s3://bucket/parts
""",
    {
        "model": RUN,
        "paths": positional(
            "IMAGES",
            "files, folders and patterns such as 'scans/*.tif'; also s3://, gs://, az:// and https://",
            nargs="*",
        ),
        "manifest": argument(
            "instead of IMAGES: table of images, CSV or Parquet, with the column path (default: none)", "FILE"
        ),
        "root": argument("folder or address that paths in the manifest are relative to (default: its own)", "FOLDER"),
        "shard": argument(
            "with --manifest: predict a part of its rows, as 3/64, counted from 0, and write it into the folder or URL "
            "--out, unless it is there (default: all rows)",
            "I/N",
        ),
        "cluster": argument(
            "with --manifest: predict all shards with the workers of a Ray cluster (default: none)", choices=("ray",)
        ),
        "address": argument(
            "with --cluster: address of a cluster that runs; auto finds it (default: a new one on this machine)",
            "ADDRESS",
        ),
        "shards": argument("with --cluster: number of shards (default: one for each 1,000 rows)"),
        "actors": argument("with --cluster: number of workers (default: one for each GPU, or else each processor)"),
        "locations": LOCATIONS,
        "policy": POLICY_OF_ONE,
        "budgets": argument(
            f"early exit: stop looking at an image once the answer is certain, at this mean cost of an image: {COST}; "
            "--locations is then the maximum",
            "COST",
            name="--budget",
        ),
        "at_once": AT_ONCE,
        "out": argument(
            f"table to write, {_names(FORMATS)}; the folder or URL of parts with --shard or --cluster (default: print "
            "path, label, probability)",
            "FILE",
        ),
        "top_k": argument("number of most probable classes in a row", "K"),
        "looks": argument(
            "also write the looks of each image into this folder: GeoJSON for QuPath; for an image with a coordinate "
            "system GeoJSON for maps, and a GeoPackage (default: none)",
            "FOLDER",
        ),
        "heatmap": argument(
            "also write the contributions in each image into this folder, as GeoTIFF (default: none)", "FOLDER"
        ),
        "overwrite": switch("replace the file instead of continuing it"),
        "retry": switch("with --out: predict failed images again"),
        "engine": argument(
            "what runs the networks; a run folder is exported first, unless it is torch (default: torch for a run, or "
            "that of the format of an exported model)",
            "NAME",
            choices=EXPORT_FORMATS,
        ),
        "masks": argument(
            "folder of masks, PNG files named as the images: a scan looks where they are white (default: everywhere)",
            "FOLDER",
        ),
        "headers": argument(
            "of remote images: index of their headers, see foveal index (default: that beside the manifest)", "FILE"
        ),
        **HOW,
        "batch_size": BATCH_SIZE,
        "threads": argument(
            "threads that open images (default: one per image of a batch, at most two per processor)",
            name="--workers",
            type=natural,
        ),
    },
    calls=(
        "foveal.prediction.output.predict",
        "foveal.evaluation.thresholds.find_thresholds",
        "foveal.distributed.cluster.predict_on_ray",
    ),
)
def _predict(args: argparse.Namespace) -> int:
    from foveal.annotations import HeatmapFolder, LooksFolder
    from foveal.prediction import predict

    _check_images(args)
    if args.shard or args.cluster:
        return _predict_parts(args)
    if args.manifest:
        from foveal.distributed import open_manifest

        table = open_manifest(args.manifest, args.root)
        args.paths = table.images(range(table.rows))
        args.headers = args.headers or table.headers
    arguments = given(args, predict)
    until = _exit(args) if args.budgets else None
    if args.engine:
        from foveal.export import for_engine

        arguments["model"] = for_engine(args.model, args.engine)
    with progress("predicting", args.quiet) as show, ExitStack() as stack:
        folders = ((LooksFolder, args.looks), (HeatmapFolder, args.heatmap))
        done = predict(
            **arguments,
            sinks=[stack.enter_context(kind(folder)) for kind, folder in folders if folder],
            resume=not args.overwrite,
            until=until,
            on_progress=lambda count, total, _: show(count, total),
            on_scan=show,
        )
    for row in done.rows:
        if not row["error"]:
            print(f"{printable(row['path'])}\t{printable(row['label'])}\t{row['probability']:.3f}")
    if done.out and not args.quiet:
        before = f", {done.skipped} were done before" if done.skipped else ""
        print(f"{done.out}: {done.predicted} predicted{before}, in {done.seconds:.1f} s")
    if not args.quiet:
        for line in done.left_out.lines():
            print(f"foveal: {printable(line)}", file=sys.stderr)
    print_failed(done.failed)
    _note_policy(args)
    if done.failed and done.out and not args.quiet:
        print(
            "foveal: the same command predicts these again if their files have changed; with --retry, always",
            file=sys.stderr,
        )
    return 1 if done.failed else 0


def _check_images(args: argparse.Namespace) -> None:
    """Check that there are images or a manifest, and that options of a manifest fit each other."""
    if bool(args.paths) == bool(args.manifest):
        raise ConfigError("give IMAGES, or --manifest and a table of images" + ", not both" * bool(args.paths))
    parts = "shard" if args.shard else "cluster" if args.cluster else None
    for name in ("root", "shard", "cluster"):
        if getattr(args, name) and not args.manifest:
            raise ConfigError(
                f"`{name}` {getattr(args, name)}: is for a manifest; give --manifest and a table of images"
            )
    for name in ("address", "shards", "actors"):
        if getattr(args, name) and not args.cluster:
            raise ConfigError(f"`{name}` {getattr(args, name)}: is for a cluster; give --cluster ray, or leave it out")
    if not parts:
        return
    if args.shard and args.cluster:
        raise ConfigError(f"--shard {args.shard}: a cluster predicts all shards; leave it out, or leave --cluster out")
    if not args.out:
        raise ConfigError(f"--{parts} {getattr(args, parts)}: the rows need a folder or a URL; give one by --out")
    for name in ("looks", "heatmap", "overwrite"):
        if getattr(args, name):
            raise ConfigError(f"`{name}`: cannot be used with --{parts}; leave it out")
    if args.engine and args.cluster:
        raise ConfigError(f"--engine {args.engine}: cannot be used with --cluster; give an exported model as RUN")


def _predict_parts(args: argparse.Namespace) -> int:
    """Parts of a manifest. Failed images are rows of them; `_merge` lists these, so that no scheduler tries again."""
    from foveal.display import counted
    from foveal.distributed import SHOWN, parse_shard, predict_on_ray, predict_shard
    from foveal.prediction import predict
    from foveal.registry import imported

    number, count = parse_shard(args.shard) if args.shard else (0, 1)
    until = _exit(args) if args.budgets else None
    how = {key: value for key, value in given(args, predict).items() if key not in ("paths", "out", "retry")}
    how |= {"out": args.out, "root": args.root, "retry": args.retry, "until": until}
    if args.engine:
        from foveal.export import for_engine

        how["model"] = for_engine(args.model, args.engine)
    with progress("predicting", args.quiet) as show:
        try:
            if args.shard:
                part = predict_shard(manifest=args.manifest, shard=number, shards=count, on_progress=show, **how)
                parts, errors = [part], []
            else:
                cluster = {key: getattr(args, key) for key in ("address", "shards", "actors")}
                made = predict_on_ray(manifest=args.manifest, modules=imported(), on_progress=show, **cluster, **how)
                parts, errors = made.parts, made.errors
        except KeyboardInterrupt as end:
            end.add_note("what is done is safe; the same command goes on")
            raise
    if not args.quiet:
        rows, predicted, failed = (sum(getattr(part, key) for part in parts) for key in ("rows", "predicted", "failed"))
        what = parts[0].name if args.shard else counted(len(parts), "part")
        print(f"{printable(what)}: {counted(rows, 'row')}, {predicted:,} predicted now, of which {failed:,} failed")
    if errors:
        print(f"foveal: {counted(len(errors), 'shard')} failed:", file=sys.stderr)
    for shard, error in errors[:SHOWN]:
        print(f"  {shard}: {printable(in_flags(error, {}))}", file=sys.stderr)
    if len(errors) > SHOWN:
        print(f"  and {len(errors) - SHOWN:,} more", file=sys.stderr)
    _note_policy(args)
    return 1 if errors else 0


@command(
    "join the parts that foveal predict --shard or --cluster has written",
    """Checks that each row of the manifest is there once, and writes all rows in the order of the manifest. If parts
are missing, it lists their shards, writes nothing and exits with 1. If images failed, it lists them and exits with 1.

  foveal merge parts/                             check
  foveal merge parts/ --out labels.parquet
  foveal merge s3://bucket/parts --out labels.csv
""",
    {
        "parts": positional("DIR", "folder or URL of the parts"),
        "out": argument(f"table to write, {_names(FORMATS)}; it is replaced (default: check only)", "FILE"),
    },
    calls=("foveal.distributed.merging.merge",),
    reads=False,
)
def _merge(args: argparse.Namespace) -> int:
    from foveal.display import counted
    from foveal.distributed import merge, shard_list

    found = merge(args.parts, args.out)
    if found.missing:
        listed, count = shard_list(found.missing), len(found.missing)
        print(f"foveal: {count:,} of {found.shards:,} parts are missing; make these shards: {listed}", file=sys.stderr)
        return 1
    if not args.quiet:
        written = f"; all are in {printable(str(args.out))}" if found.out else ""
        print(f"{counted(found.rows, 'row')} in {counted(found.shards, 'part')}, each once{written}")
    if found.failed:
        shards = shard_list(found.failed_shards)
        print(
            f"foveal: {counted(found.failed, 'image')} failed; predict these shards again with --retry: {shards}",
            file=sys.stderr,
        )
        for path, error in found.errors:
            print(f"  {printable(error if error.startswith(path) else f'{path}: {error}')}", file=sys.stderr)
        if found.failed > len(found.errors):
            print(f"  and {found.failed - len(found.errors):,} more", file=sys.stderr)
    return 1 if found.failed else 0


def _note_policy(args: argparse.Namespace) -> None:
    """Say which looks were taken if no policy was asked for and learned looks are worse than random ones."""
    from foveal.policies import GREEDY
    from foveal.runs import Run
    from foveal.runtime.card import is_exported, read_card

    card = read_card(args.model) if is_exported(args.model) else Run(args.model).card
    if args.policy or args.quiet or card.get("policy", GREEDY.name) == GREEDY.name:
        return
    why = "fit found learned looks worse on validation images"
    note = f"looks were random, because {why}; --policy greedy takes learned ones"
    if getattr(args, "budgets", None):
        note = f"early exit takes learned looks, although {why}; without --budget, looks are random"
    print(f"foveal: {note}", file=sys.stderr)


def _exit(args: argparse.Namespace) -> Exit:
    """The exit for the budget: the stored one for these conditions, or else a new one found on validation images."""
    from foveal.evaluation import Setting, find_thresholds
    from foveal.glimpse.base import GlimpseClassifier
    from foveal.policies import GREEDY, find_policy
    from foveal.prediction import (
        Exit,
        find_device,
        fingerprint,
        format_locations,
        machine_name,
        parse_cost,
        parse_locations,
        read_exits,
    )
    from foveal.runs import Run, load

    if args.policy and find_policy(args.policy) != GREEDY:
        raise ConfigError("--budget: early exit uses the policy of the model; leave --policy out")
    run, unit = Run(args.model), parse_cost(args.budgets)[1]
    model = load(run.path)
    own = model.locations if isinstance(model, GlimpseClassifier) else ()
    most = parse_locations(args.locations) if args.locations else own
    holds = {"batch_size": args.batch_size, "machine": machine_name(find_device(args.device))} if unit == "ms" else {}
    wanted = Exit(args.budgets, 0, most, args.at_once, 0, unit, 0, fingerprint(model), args.precision, **holds)
    known = next(
        (one for one in read_exits(run.path) if (one.conditions, one.model) == (wanted.conditions, wanted.model)), None
    )
    if known is None:
        with progress("finding the threshold", args.quiet) as show:
            setting = Setting(
                batch_size=args.batch_size, device=args.device, precision=args.precision, on_progress=show
            )
            data = data_of(run, [])
            (known,) = find_thresholds(run, data, [args.budgets], locations=most, at_once=args.at_once, setting=setting)
        keep_exits(run, [known])
    if not args.quiet:
        most_looks = f"after --locations {format_locations(known.locations)}"
        when = f"looking stops {most_looks}"
        if known.threshold <= 1:
            when = f"looking stops at a probability of {100 * known.threshold:.1f} %, or {most_looks}"
        print(f"foveal: {args.budgets}: {when}", file=sys.stderr)
    return known


@command(
    "encode the tiles of images once, to train on their features in seconds",
    """Writes a file of features for each image, in the layout of TRIDENT and CLAM, and the weights of the network.
Blank tiles are left out. An image that fails is listed in report.jsonl and at the end, and the command exits with 1.
The same command continues where it stopped; finished images are not encoded again.

  foveal embed resnet18 slides/ --tile-size 224 --scale 4 --out features/
  foveal embed runs/dense photos/ --tile-size 128 --out features/
  foveal embed hf-hub:timm/vit_small_patch14_dinov2.lvd142m slides/ \\
      --out features/
  foveal fit features --data.root features/ --data.labels labels.csv
  foveal predict runs/features new/

Of a run of the model scan, the looks that it chooses are encoded. A scout on features of a coarser level chooses tiles
for a finer one:

  foveal embed resnet18 photos/ --tile-size 128 --out fine/
  foveal embed resnet18 photos/ --tile-size 32 --scale 4 --out coarse/
  foveal fit features --data.root fine/ --data.coarse coarse/ \\
      --data.labels labels.csv --model tile_scan
""",
    {
        "model": positional("RUN|BACKBONE", "run folder, name of a network of timm, or hf-hub:owner/name of one"),
        "images": positional("IMAGES", "files, folders and patterns such as 'scans/*.tif'", nargs="+"),
        "out": argument("folder of the files", "FOLDER", required=True),
        "format": argument("format of the files", choices=FEATURE_FORMATS),
        "tile_size": argument("side of a tile in pixels of the level (default: the run's, or that of the network)"),
        "tile_stride": argument("pixels of the level between beginnings of tiles (default: the tile size)"),
        "scale": argument("level of the tiles: image pixels per pixel, 1, 2, 4, ... (default: the run's, or 1)"),
        "stages": argument("of a network by name: number of stages, whose last is averaged (default: all of it)"),
        "pretrained": argument(
            "of a network by name: file of weights, true for those that timm downloads, false for random ones "
            "(default: true)",
            "FILE",
            default=None,
        ),
        "set": argument(
            "of a network by name: an option of timm, as pad_type=same; may be repeated",
            "KEY=VALUE",
            action="append",
            default=[],
        ),
        "in_chans": argument("of a network by name: bands of the images"),
        "value_range": argument(
            "of a network by name: stored values that are black and white, as 0,4095 (default: by the pixel type)",
            "LOW,HIGH",
            type=_value_range,
        ),
        "locations": argument("of a run of the model scan: number of looks (default: the run's)", "LOOKS"),
        "masks": argument(
            "folder of masks, PNG files named as the images: tiles are encoded where they are white "
            "(default: everywhere)",
            "FOLDER",
        ),
        "licence": argument("licence of the weights, for the files (default: what timm knows)", "NAME"),
        "overwrite": switch("make files anew that were made with other settings"),
        "device": HOW["device"],
        "precision": HOW["precision"],
        "batch_size": argument("tiles that are encoded at once"),
    },
    calls=("foveal.embedding.images.embed",),
)
def _embed(args: argparse.Namespace) -> int:
    from foveal.embedding import embed
    from foveal.recipes.flags import as_nested, parse_settings

    args.backbone_options = as_nested(parse_settings(args.set))
    args.pretrained = {"true": True, "false": False}.get(args.pretrained, args.pretrained)
    with progress("encoding", args.quiet) as show:
        done = embed(**given(args, embed), on_progress=show)
    if not args.quiet:
        before = f", {done.skipped:,} were done before" if done.skipped else ""
        print(f"{done.out}: {done.encoded:,} encoded, {done.tiles:,} tiles{before}, in {done.seconds:.1f} s")
        for line in done.left_out.lines():
            print(f"foveal: {printable(line)}", file=sys.stderr)
    print_failed(done.failed)
    return 1 if done.failed else 0


@command(
    "write a model for ONNX Runtime, OpenVINO or torch.export",
    """Writes a folder with the networks of the model, and export.json, which says how they are used. foveal predict
and foveal explain take it like a run folder. foveal.runtime runs it without torch.

  foveal export runs/demo
  foveal export runs/demo --format openvino --out demo-openvino
  foveal export runs/demo --precision int8 --calibration photos/
  foveal predict runs/demo/exported/onnx-fp32 photos/
  foveal predict runs/demo photos/ --engine onnx  export, then predict
""",
    {
        "model": RUN,
        "format": argument("file format of the networks", choices=EXPORT_FORMATS),
        "precision": argument("numerical precision of the weights", choices=EXPORT_PRECISIONS),
        "out": argument("folder to write (default: RUN/exported/FORMAT-PRECISION)", "FOLDER"),
        "calibration": argument(
            "for int8: files, folders and patterns of images like those of training (default: training images of the "
            "run)",
            "IMAGES",
            nargs="+",
        ),
        "images": argument("for int8: largest number of images", "N"),
        "licence": argument("licence of the weights, for export.json (default: none)", "NAME"),
        "overwrite": switch("replace an exported model that is there"),
    },
    calls=("foveal.export.exporting.export",),
    reads=False,
)
def _export(args: argparse.Namespace) -> int:
    from foveal.export import export as write
    from foveal.runs import Run

    arguments = given(args, write)
    if args.precision == "int8" and not args.calibration:
        arguments["calibration"] = data_of(Run(args.model), [])
    folder = write(**arguments)
    if not args.quiet:
        print(f"{folder}: written")
    return 0


@command(
    "where a model looked, and what each look added",
    """Writes one self-contained page: the image with the boxes, every look as the model saw it, the contribution of
each look to the most probable classes, and the cost.

  foveal explain runs/demo photo.png --out report.html
  foveal explain runs/slides slide.svs --locations 3,2 \\
      --overlay looked.png
  foveal explain runs/demo photo.png --policy exhaustive    look at every cell
  foveal explain runs/slides slide.svs --looks looks.geojson

Of a folder, a pattern or several files: a folder of pages, with an index that sorts by class, sureness, error and cost.
--looks and --heatmap are folders then.

  foveal explain runs/demo photos/ --out explained/ --labels labels.csv
""",
    {
        "model": RUN,
        "paths": positional("IMAGES", "an image file; or files, folders and patterns", nargs="+"),
        "out": argument("the page, or the folder of pages (default: report.html, or explained)", "FILE", default=None),
        "overlay_out": argument("also write the image with the boxes: .png, .jpg or .webp", "FILE", name="--overlay"),
        "looks": argument("also write the looks: .geojson for QuPath or maps, or .gpkg (default: none)", "FILE"),
        "heatmap": argument("also write the contributions: .tif (default: none)", "FILE"),
        "labels": argument("of several images: CSV file with the columns path and label (default: none)", "FILE"),
        "mask": argument(
            "picture with the proportions of the image: a scan looks where it is white (default: everywhere)", "FILE"
        ),
        "locations": LOCATIONS,
        "policy": POLICY_OF_ONE,
        "wide": WIDE,
        **HOW,
    },
    calls=("foveal.explain.page.explain", "foveal.explain.many.explain_many"),
)
def _explain(args: argparse.Namespace) -> int:
    from foveal.explain import explain, show
    from foveal.images import is_zarr
    from foveal.images.uris import is_folder, is_remote

    first = args.paths[0]
    if is_remote(first):
        several = is_folder(first)
    else:
        several = Path(first).is_dir() and not is_zarr(first)
        several = several or (has_magic(first) and not Path(first).exists())
    if len(args.paths) > 1 or several:
        return _explain_many(args)
    if args.labels:
        raise ConfigError(f"--labels {args.labels}: are for several images; leave them out")
    args.path, args.looks_out, args.heatmap_out = first, args.looks, args.heatmap
    args.out = args.out or "report.html"
    with progress("scanning", args.quiet, late=True) as show_scan:
        seen = explain(**given(args, explain), on_scan=lambda share: show_scan(share, 1))
    if not args.quiet:
        show(seen, wide=args.wide)
        print(f"\nThe page is in {args.out}")
    _note_policy(args)
    return 0


def _explain_many(args: argparse.Namespace) -> int:
    from foveal.explain import explain_many
    from foveal.images import LeftOut

    for name in ("overlay_out", "mask"):
        if getattr(args, name):
            raise ConfigError(f"`{name}` {getattr(args, name)}: is for one image; leave it out")
    args.out, left_out = args.out or "explained", LeftOut()
    with progress("explaining", args.quiet) as show:
        rows = explain_many(**given(args, explain_many), on_progress=show, left_out=left_out)
    failed = [(row["path"], row["error"]) for row in rows if row["error"]]
    if not args.quiet:
        print(f"The index is in {Path(args.out, 'index.html')}")
        for line in left_out.lines():
            print(f"foveal: {printable(line)}", file=sys.stderr)
    print_failed(failed)
    _note_policy(args)
    return 1 if failed else 0


# ---------------------------------------------------------------------------------------------------------- card, push

LICENCE = argument("licence of the weights as on the Hub, as apache-2.0 (default: that of the card before)", "NAME")
DATA_DESCRIPTION = argument("what the images show, and where they come from (default: that of the card before)", "TEXT")


@command(
    "write the card of a model, and list what it lacks to be published",
    """Writes README.md into the run folder: how to use the model, its data, classes and levels, and accuracy and cost
by the number of looks, from the run and its evaluation. Text of your own outside of the marks is kept.

  foveal evaluate runs/photos
  foveal card runs/photos
  foveal card runs/photos --licence apache-2.0 \\
      --data-description 'Photographs of concrete, taken by us in 2024'
""",
    {
        "model": RUN,
        "licence": LICENCE,
        "data_description": DATA_DESCRIPTION,
        "title": argument("title (default: the name of the folder)", "TEXT"),
        "picture": argument("a picture to show, as by foveal explain --overlay (default: none)", "FILE"),
    },
    calls=("foveal.card.write_model_card",),
    reads=False,
)
def _card(args: argparse.Namespace) -> int:
    from foveal.card import write_model_card

    file, lacking = write_model_card(**given(args, write_model_card))
    if lacking:
        print("To publish the model, it lacks:")
    for line in lacking:
        print(f"- {printable(in_flags(line, {}))}")
    if not args.quiet:
        print(f"{chr(10) if lacking else ''}The card is in {printable(str(file))}")
    return 0


@command(
    "publish a model on the Hugging Face Hub",
    """Uploads the weights, config.json and the card, which must name a licence. Log in before, by hf auth login.
foveal.load and all commands take the model as hf-hub:owner/name.

  foveal push runs/photos owner/photos --licence apache-2.0
  foveal predict hf-hub:owner/photos new/
""",
    {
        "model": RUN,
        "repo": positional("REPO", "repository, as owner/name; it is created if it does not exist"),
        "licence": LICENCE,
        "data_description": DATA_DESCRIPTION,
        "private": switch("make a new repository private"),
    },
    calls=("foveal.card.push",),
    reads=False,
)
def _push(args: argparse.Namespace) -> int:
    from foveal.card import push

    address = push(**given(args, push))
    if not args.quiet:
        print(f"The model is at {printable(address)}")
    return 0


# --------------------------------------------------------------------------------------------------------------- serve


@command(
    "answer requests of other programs, and show where the model looks in a browser",
    """Opens a page with a list of the images in --images, a viewer that zooms into images of any size, the looks as
boxes, and sliders that classify anew. Programs use REST: see the page under /docs. The service ends with Ctrl-C, after
the requests that it has accepted are answered.

  foveal serve runs/demo --images photos/
  curl -F path=1.png http://127.0.0.1:8000/v1/classify
  curl -F image=@photo.png -F locations=2 http://127.0.0.1:8000/v1/classify

Only this machine is answered. With another --host, clients send a token: that of the variable FOVEAL_TOKEN, or a new
one, which is in the address that the command prints. Files outside of --images cannot be read.
""",
    {
        "model": RUN,
        "images": argument("folder of the images that can be looked at (default: uploads only)", "FOLDER"),
        "host": argument("address to listen at"),
        "port": argument("port to listen at; 0 for a free one", type=natural),
        "batch_size": BATCH_SIZE,
        "wait": argument("milliseconds that an image waits for others of its batch (default: 5.0)", "MS", type=float),
        "queue": argument("classifications that may wait; more are refused"),
        "timeout": argument("seconds after which a request is refused (default: 60.0)", "S", type=float),
        "upload": argument("most megabytes of a request"),
        "pixels": argument("most megapixels of an uploaded image"),
        "device": HOW["device"],
        "precision": HOW["precision"],
    },
    calls=("foveal.serve.server.serve",),
)
def _serve(args: argparse.Namespace) -> int:
    from foveal.serve import serve

    serve(**given(args, serve), on_start=lambda address: print(f"foveal: {address}  Ctrl-C ends", flush=True))
    return 0


# -------------------------------------------------------------------------------------------- models, data, cost, table


@command(
    "list models",
    """Without a pattern: the models that look. Networks of timm can be trained as dense networks, or be the backbone
of a model that looks.

  foveal models
  foveal models 'efficientnet*'
  foveal fit demo --model tnet --help             options of a model
""",
    {"pattern": positional("PATTERN", "names with * and ?, of timm too (default: models that look)", nargs="?")},
    reads=False,
)
def _models(args: argparse.Namespace) -> int:
    from foveal.models import list_models
    from foveal.registry import MODELS

    names = list_models(args.pattern) if args.pattern else MODELS.names()
    if not names:
        raise ConfigError(f"{args.pattern}: no model has such a name; foveal models '*' lists all")
    if args.quiet or not args.pattern:
        print("\n".join(names))
        if not args.quiet:
            print("foveal models '*' also lists dense networks", file=sys.stderr)
        return 0
    groups = {"models that look": [name for name in names if name in MODELS]}
    groups["dense networks, of timm and foveal"] = [name for name in names if name not in MODELS]
    print("\n\n".join("\n".join([f"{title}:", *group]) for title, group in groups.items() if group))
    return 0


@command(
    "read the headers of remote images once, into a file beside their list",
    """Writes an index with the size, the version and the header of each image, so that training and prediction open it
without a request. IMAGES are tables with a column path, as for foveal fit --data manifest, or addresses; folders of
s3://, gs:// and az:// end with a slash. An image that changes later is an error until its index is written again.

  foveal index slides.csv                          writes slides.headers.parquet
  foveal fit --data manifest --data.file slides.csv ...    finds it there
  foveal predict runs/slides s3://bucket/slides/ --out rows.parquet \\
      --headers slides.headers.parquet
""",
    {
        "paths": positional("IMAGES", "tables, addresses of images and of folders", nargs="+"),
        "out": argument("index to write (default: beside the table)", "FILE"),
    },
    calls=("foveal.data.headers.index_images",),
    reads=False,
)
def _index(args: argparse.Namespace) -> int:
    from foveal.data.headers import index_images

    with progress("reading headers", args.quiet) as show:
        done = index_images(**given(args, index_images), on_progress=show)
    if done.images and not args.quiet:
        print(f"{done.out}: {done.images:,} images")
    print_failed(done.failed)
    return 1 if done.failed else 0


@command(
    "list data sets, or describe one",
    """Without NAME: the names of the data sets. With the name of a data set or a run folder: its classes, and the
number of images of each split. --data.KEY sets an option of the data set, as for foveal fit.

  foveal data
  foveal data folder --data.root photos/

Write the first test images of a run's data set as PNG files:

  foveal data runs/demo --export samples/ --count 4

Write photographs in folders into shards, tar files in the format of WebDataset:

  foveal data folder --data.root photos/ --pack shards/
""",
    {
        "name": positional("NAME", "data set or run folder (default: list the data sets)", nargs="?"),
        "data.KEY": argument("option of the data set, see foveal fit --data NAME --help", "VALUE"),
        "split": argument("images to export", default="test", choices=SPLITS),
        "export": argument("write images into this folder", "FOLDER"),
        "count": argument("number of images to write", "N", type=positive, default=8),
        "pack": argument("write the image files of all splits into shards in this folder", "FOLDER"),
        "wide": switch("list all classes"),
    },
)
def _data(args: argparse.Namespace) -> int:
    from foveal.data import list_data, value_notes
    from foveal.runs import Run

    if args.name is None:
        print("\n".join(list_data()))
        return 0
    run = args.name not in list_data() and Path(args.name).is_dir()
    flags, name = args.data_flags, args.name
    data = data_of(Run(name), flags) if run else make_data({"name": name}, flags, where=name)
    if args.export:
        failed = export(data, args.split, Path(args.export), args.count)
    elif args.pack:
        from foveal.data.shards import pack

        failed = pack(data, args.pack)
    if args.export or args.pack:
        print_failed(failed)
        return 1 if failed else 0
    from foveal.display import console, counted, stacked

    shown = console()
    few = data.classes[: SHOWN_CLASSES if shown.is_terminal and not args.wide else None]
    more = "" if len(few) == len(data.classes) else f" and {len(data.classes) - len(few):,} more; --wide lists all"
    splits = {split: len(images) for split in ("train", "val", "test") if (images := getattr(data, split)) is not None}
    shown.print(stacked(f"{len(data.classes):,} classes: {', '.join(map(printable, few))}{more}"))
    shown.print(stacked(", ".join(f"{split}: {counted(count, 'image')}" for split, count in splits.items())))
    for note in (*data.notes, *value_notes(data)):
        shown.print(stacked(printable(in_flags(note, {}))))
    return 0


def _size(text: str) -> int | tuple[int, int]:
    height, by, width = text.partition("x")
    return (positive(height), positive(width)) if by else positive(height)


_size.__name__ = "size"


@command(
    "parameters and multiply-accumulates of a model for one image",
    """The operations are counted without an image in memory, so that any size is quick. FLOPs are twice the MACs.

  foveal cost tnet --image-size 4096 --locations 2,1 --set backbone=resnet50
  foveal cost tnet_bagnet77.reference --image-size 224 --locations 5 --json
  foveal cost efficientnet_b0 --image-size 896 --num-classes 62
""",
    {
        "model": positional("MODEL", "name of a model, see foveal models, or run folder"),
        "image_size": argument(
            "side of the image, 896, or height x width, 896x1344", "SIDE", type=_size, required=True
        ),
        "locations": argument("looks per level, as 2,1 (default: the model's)", "LOOKS"),
        "num_classes": argument("classes (default: the model's)"),
        "set": argument(
            "option of the model, see foveal fit --model MODEL --help; may be repeated",
            "KEY=VALUE",
            action="append",
            default=[],
        ),
        "json": switch("print one line of JSON"),
    },
    calls=("foveal.prediction.cost.count_cost", "foveal.models.create_model"),
    reads=False,
)
def _cost(args: argparse.Namespace) -> int:
    from foveal.display import TEXT, Column, Table, console, image_size, significant
    from foveal.glimpse.base import GlimpseClassifier
    from foveal.hub import on_hub
    from foveal.models import create_model, list_models
    from foveal.prediction import count_cost, format_locations, parse_locations
    from foveal.recipes.flags import as_nested, parse_settings
    from foveal.runs import load

    settings = as_nested(parse_settings(args.set))
    classes = settings.pop("num_classes", args.num_classes)
    if classes is not None and (type(classes) is not int or classes < 1):
        raise ConfigError(f"--set num_classes={classes}: is not a number of classes; give 1 or more")
    if args.num_classes not in (None, classes):
        raise ConfigError(
            f"--num-classes {args.num_classes}: differs from --set num_classes={classes}; give one of the two"
        )
    folder = on_hub(args.model) or (Path(args.model).is_dir() and args.model not in list_models())
    with renaming({key: f"--set {key}" for key in settings}):
        model = load(args.model) if folder else create_model(args.model, num_classes=classes, **settings)
    own = model.locations if isinstance(model, GlimpseClassifier) else ()
    locations = parse_locations(args.locations) if args.locations and isinstance(model, GlimpseClassifier) else own
    cost = count_cost(model, args.image_size, locations)
    line = {
        "model": args.model,
        "image_size": args.image_size,
        "locations": locations,
        "parameters": cost.parameters,
        "parameters_and_statistics": cost.parameters_and_statistics,
        "macs": cost.macs,
    }
    if args.json:
        print(json.dumps(line))
        return 0
    rows: list[tuple[str, Cost | None]] = [("model", cost)]
    if isinstance(model, GlimpseClassifier):
        try:
            rows.append(("dense backbone", count_cost(model.dense(), args.image_size)))
        except ConfigError:
            rows.append(("dense backbone", None))
    columns = [
        Column("", lambda row: row[0], TEXT),
        Column("parameters", lambda row: f"{row[1].parameters:,}" if row[1] else "cannot take this size"),
        Column("and statistics", lambda row: f"{row[1].parameters_and_statistics:,}" if row[1] else ""),
        Column("MACs", lambda row: f"{row[1].macs:,}" if row[1] else ""),
        Column(
            "times as many", lambda row: significant(row[1].macs / cost.macs) if row[1] and row[1] is not cost else ""
        ),
    ]
    looks = f", locations {format_locations(locations)}" if isinstance(model, GlimpseClassifier) else ""
    console().print(Table(f"{args.model} on an image of {image_size(args.image_size)} px{looks}", columns, rows))
    return 0


@command(
    "published tables, with the results of your own runs",
    """Each row has three kinds of numbers, in separate columns. Claimed: numbers in the tables of the paper; two
numbers if its tables contradict each other. Published: numbers that other papers and repositories report, with the
source. Measured: mean, standard deviation and best over the seeds of your runs, from their evaluation.json. "not
found" means that no published number was found.

A run counts for a row if its model has the name and options of the row, training has finished, and foveal evaluate
has used all images of the split: test images of CIFAR, val images of ImageNet. Runs that differ in more than the seed
get separate lines.

  foveal fit cifar10/attn_resnet110 --seed 1 --out runs/attn_1
  foveal evaluate runs/attn_1
  foveal table cifar
  foveal table cifar --runs elsewhere/ --json
  foveal table imagenet
""",
    {
        "name": positional("NAME", _names(TABLES)),
        "runs": argument("folder with run folders", "FOLDER", default=None),
        "wide": WIDE,
        "json": switch("print all rows as JSON, including those without a number"),
    },
    calls=("foveal.evaluation.papers.paper_table",),
    reads=False,
)
def _table(args: argparse.Namespace) -> int:
    from foveal.display import console
    from foveal.evaluation import paper_table

    if args.runs is not None and not Path(args.runs).is_dir():
        raise ConfigError(f"--runs {args.runs}: there is no such folder; check the path")
    found = paper_table(**given(args, paper_table))
    if args.json:
        print(json.dumps(found.as_dict()))
        return 0
    console().print(found.table(args.wide))
    if found.left_out and not args.quiet:
        print("left out:", file=sys.stderr)
    for folder, reason in found.left_out if not args.quiet else ():
        text = f"{folder}: {in_flags(reason.removeprefix(f'{folder}: '), {})}"
        print(f"  {printable(text)}", file=sys.stderr)
    return 0
