"""The commands: what each takes, which function it calls, and what it prints.

Example:
    >>> list(COMMANDS)
    ['fit', 'recipes', 'evaluate', 'compare', 'occlude', 'faithfulness', 'predict', 'explain', 'models', 'data', ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.choices import FORMATS, MEASURES, METRIC_NAMES, POLICY_NAMES, PRECISIONS, SACCADER_POLICY_NAMES, SPLITS
from foveal.cli.arguments import Arguments, Command, argument, given, natural, positional, positive, switch
from foveal.cli.running import data_of, export, import_torch, keep_exits, make_data, print_result, progress, tell_failed
from foveal.display import printable
from foveal.errors import ConfigError, RunError
from foveal.formats import SUFFIXES
from foveal.recipes.layout import in_columns

if TYPE_CHECKING:
    from foveal.prediction import Cost, Exit
    from foveal.runs import Run

SHOWN_CLASSES = 20
"""Classes that a terminal shows unless it is to show all."""


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
    """Names as a sentence lists them."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def _separate(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


COST = "a number with MAC, kMAC, MMAC, GMAC, TMAC, ms or locations, as 20MMAC"
POLICY = f"{_names(POLICY_NAMES)}; Saccader also knows {_names(SACCADER_POLICY_NAMES, 'and')}"
TABLES = sorted(file.stem for file in Path(__file__).parents[1].glob("evaluation/tables/*.yaml"))

RUN = positional("RUN", "run folder")
LOCATIONS = argument("looks per level, as 2,1 (default: the run's)", "LOOKS")
POLICY_OF_ONE = argument(f"how cells are chosen: {POLICY}", "NAME", default="greedy")
AT_ONCE = argument("with --budget: looks between two decisions to stop")
WIDE = switch("print every column that there is")
MEASURE = argument(
    "times and memory: none, in about 20 s in all, or 0.5 s and more for each number", default=None, choices=MEASURES
)  # no default: with --budget it must not be given
HOW: Arguments = {
    "device": argument("where to run: cpu, cuda, cuda:1, ...; auto is the first GPU, or the CPU"),
    "precision": argument(f"of the arithmetic: {_names(list(PRECISIONS))}"),
    "seed": argument("of everything random", type=natural),
}
BATCH_SIZE = argument("images at a time")
JUDGES = argument(
    "other runs that also classify the changed images, say dense ones", "RUN", name="--by", action="extend", nargs="+"
)
EVALUATION: Arguments = {
    "data_flags": argument("data set, see foveal data (default: the run's)", "NAME", name="--data"),
    "data.KEY": argument("option of the data set, see foveal fit --data NAME --help (default: the run's)", "VALUE"),
    "split": argument("images to use (default: test, or val where there is no test)", choices=SPLITS),
    "metrics": argument(
        f"metrics besides accuracy, with commas between them (default: by the task): {_names(METRIC_NAMES)}",
        "NAMES",
        type=_separate,
        action="extend",
    ),
    "limit": argument("use N images, drawn by the seed (default: all)"),
    "out": argument("where to write (default: the run)", "FOLDER"),
    "wide": WIDE,
    **HOW,
    "batch_size": BATCH_SIZE,
    "workers": argument("processes that read images ahead", type=natural),
}
"""Arguments of every command that evaluates: the fields of a `foveal.evaluation.Setting`, data, and the output."""
SETTING = "foveal.evaluation.protocol.Setting"


def _policies(what: str) -> dict[str, Any]:
    """Further policies, with commas between them."""
    text = f"{what} besides the learned one and random, with commas between them: {POLICY}"
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
  foveal fit --out runs/short --resume            go on after an interruption
  foveal fit --data folder --model tnet --help    every option of the two

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
        "resume": switch("go on with the run that is there"),
        "overwrite": switch("replace the run that is there"),
    },
    usage="foveal fit [RECIPE] [--key value ...]",
)
def _fit(argv: list[str]) -> int:
    """Its flags depend on the recipe, the model and the data; it reads them itself, see `foveal.recipes.configure`."""
    recipe, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (_recipe_of(argv), argv)
    from foveal.recipes import find_recipe

    find_recipe(recipe)  # a name that is wrong should be told at once
    import_torch()
    from foveal.recipes.configure import configure

    config, out, how = configure(recipe, flags)
    from foveal.recipes.fit_config import fit_config
    from foveal.training import TrainingSummary

    # Lightning starts further processes as copies of this command; one of them speaks.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    quiet = how["quiet"] or not speaks
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if quiet else logging.INFO)
    run = fit_config(config, out, resume=how["resume"], overwrite=how["overwrite"], quiet=quiet)
    if speaks and quiet and run.summary:
        TrainingSummary(**run.summary).show(out, brief=True)
    return 0


def _recipe_of(argv: Sequence[str]) -> str:
    """What is meant where no recipe is named: the run that is to be resumed, or a folder of images."""
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
                raise RunError(f"{config}: base: a run has all its values and no recipe below it; remove the line")
            return str(config)
    return "folder"


@command(
    "recipes there are, and what each of them trains",
    """One line per recipe. With --quiet, the names alone.

  foveal recipes
  foveal recipes cifar10                          all of one group
  foveal recipes '*saccader*'
  foveal fit cifar10/saccader --help              the options of one
""",
    {"pattern": positional("PATTERN", "a group, or names with * and ? (default: *)", nargs="?", default="*")},
    reads=False,
)
def _recipes(args: argparse.Namespace) -> int:
    from foveal.recipes import describe_recipe, list_recipes

    names = sorted(list_recipes(args.pattern), key=lambda name: "/" in name)
    if not names:
        raise ConfigError(f"{args.pattern}: no recipe has such a name; foveal recipes lists them all")
    if args.quiet:
        print("\n".join(names))
        return 0
    groups = [list(group) for _, group in groupby(names, key=lambda name: name.rpartition("/")[0])]
    rows = [[(name, describe_recipe(name)) for name in group] for group in groups]
    print("\n\n".join("\n".join(in_columns(group, indent="")) for group in rows))
    return 0


# ---------------------------------------------------------------------------------------------------------- evaluation


@command(
    "accuracy and cost of a trained model, by locations",
    """Writes evaluation.json and tradeoff.png into the run folder, or into --out. The images are those of the
run; --data and --data.KEY choose others, as for foveal fit.

  foveal evaluate runs/demo --locations 0..4
  foveal evaluate runs/demo --locations 0..3,1 --against runs/dense
  foveal evaluate runs/photos --data folder --data.root other/ --split test

Other policies, compared with the learned one:

  foveal evaluate runs/demo --policy centre,exhaustive

Early exit: no more looks at an image once the answer is sure. The budget is the cost of the mean image:

  foveal evaluate runs/demo --budget 3locations --budget 20MMAC
""",
    {
        "model": RUN,
        "locations": argument(
            "looks per level, 2,1, or a sweep of the first, 0..6 (default: 0 up to the run's own)", "LOOKS"
        ),
        "policies": _policies("policies to evaluate"),
        "budgets": argument(
            "early exit instead of equal looks: stop at each image once the answer is sure, so that the mean "
            f"image costs this much: {COST}. The threshold is found on validation images and kept in the run. May be "
            "repeated",
            "COST",
            name="--budget",
            action="append",
        ),
        "at_once": AT_ONCE,
        "against": argument("run of another model, say a dense network, to compare with", "RUN"),
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
            "--budget: is compared with equal locations of the same model; leave --policy and --against out"
        )
    if args.measure:
        raise ConfigError(
            f"--measure {args.measure}: with --budget every image is timed while it is classified; leave --measure out"
        )
    read_exits(run.path)  # a damaged file is reported before the work is done
    result = _result(evaluate_early_exit, args, run, "finding thresholds")
    code = print_result(result, args)
    if not args.data_flags:  # thresholds found on other data are not kept
        keep_exits(run, result.exits)
    return code


def _result(function: Callable[..., Any], args: argparse.Namespace, run: Run, what: str) -> Any:
    """What a function of `foveal.evaluation` finds on the data of a run."""
    from foveal.evaluation import Setting

    arguments, data = given(args, function), data_of(run, args.data_flags)
    with progress(what, args.quiet) as show:
        return function(**arguments, data=data, setting=Setting(**given(args, Setting), on_progress=show))


@command(
    "decide a class by a threshold: a wanted recall, precision or specificity",
    """A class that is rare, or that must not be missed, can be predicted from another probability than the one at
which it is the most probable class. The threshold is found on the validation images of the run, for the class
against the rest. It is kept in the run: predict, explain, evaluate and foveal.load use it, until the run is trained
on. Writes threshold.json and threshold.png, the shares at every threshold, into the run.

  foveal threshold runs/cracks --at recall=0.99
  foveal threshold runs/photos --at precision=0.9 --class cat
  foveal threshold runs/cracks --remove           the most probable class again
""",
    {
        "model": RUN,
        "at": argument("what to reach: recall=, precision= or specificity=, and a share up to 1", "AIM"),
        "remove": switch("remove the thresholds of the run"),
        "label": argument(
            "the class (default: the rarer one of two, or every label of a multilabel model)", "NAME", name="--class"
        ),
        "locations": argument("looks per level, as 2,1 (default: the run's)", "LOOKS"),
        **{key: value for key, value in EVALUATION.items() if key != "metrics"},
    },
    calls=("foveal.evaluation.decisions.fit_threshold", SETTING),
)
def _threshold(args: argparse.Namespace) -> int:
    from foveal.evaluation import fit_threshold
    from foveal.runs import Run

    args.model = run = Run(args.model)
    if args.remove == bool(args.at):
        raise ConfigError("--at: give an aim, as recall=0.99, or --remove alone")
    if args.remove:
        run.keep_thresholds([])
        return 0
    result = _result(fit_threshold, args, run, "validation")
    code = print_result(result, args)
    found = [{key: getattr(one, key) for key in ("label", "threshold", "at")} for one in result.thresholds]
    labels = [one["label"] for one in found]
    run.keep_thresholds([*(one for one in run.card.get("thresholds", []) if one["label"] not in labels), *found])
    return code


@command(
    "accuracy, calibration and cost of several models on the same images",
    """Takes run folders, of models that look and of dense ones, and names of networks. A network by name has no
trained weights, so that only its cost is found. Times are taken in turn. Writes comparison.json and comparison.png
into --out: accuracy against MACs, time and memory, with the Pareto front marked. The images are those of the first
run; --data and --data.KEY choose others, as for foveal fit.

  foveal compare runs/demo runs/dense
  foveal compare runs/tnet runs/dense --locations 0..6 --out results/
  foveal compare runs/photos efficientnet_b0 --data folder \\
      --data.root other/ --split test
""",
    {
        "models": positional("RUN_OR_MODEL", "run folders, and names of networks, see foveal models", nargs="+"),
        "locations": argument(
            "looks per level, 2,1, or a sweep of the first, 0..6, for the models that can meet them "
            "(default: 0, and each run's own)",
            "LOOKS",
        ),
        "measure": MEASURE,
        **EVALUATION,
        "out": argument("where to write", "FOLDER", default="comparison"),
    },
    calls=("foveal.evaluation.comparison.compare", SETTING),
)
def _compare(args: argparse.Namespace) -> int:
    from foveal.evaluation import compare, first_run

    return print_result(_result(compare, args, first_run(args.models), "accuracy"), args)


@command(
    "hide what a model looked at, and see what is still known",
    """The model classifies an image at each of the locations. The regions that it chose to look at are hidden
under the mean colour. Then the model, and the runs named by --by, classify what is left. If the model looks at what
matters, accuracy falls faster than when random looks hide as much of the image; random looks are always evaluated
too. Writes occlusion.json and occlusion.png, accuracy against the share hidden, into the run. The images are those
of the run; --data and --data.KEY choose others, as for foveal fit.

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
    "does the answer depend on the regions that a model points at?",
    """Regions are ranked: the boxes that a model chose to look at, the cells of a network's last attention map
or of the one named by --map, or the cells of Grad-CAM at the module named by --cam. Deletion hides them one after
another, best first, under the mean colour. Insertion shows nothing else but them. The probability of the predicted
class should fall early in deletion and rise early in insertion. The pointing game asks whether the best region lies
on the object, where the data has boxes. Everything is compared with random regions of equal area. Writes
faithfulness.json and faithfulness.png into the run. The images are those of the run; --data and --data.KEY choose
others, as for foveal fit.

  foveal faithfulness runs/demo
  foveal faithfulness runs/demo --locations 4 --by runs/dense --limit 500
  foveal faithfulness runs/attention --map layer3
  foveal faithfulness runs/dense --cam layer4 --out gradcam/
""",
    {
        "model": RUN,
        "locations": argument("looks per level, as 2,1, of a model that looks (default: the run's)", "LOOKS"),
        "attention": argument(
            "attention map, by its module or part of the network (default: the last)", "NAME", name="--map"
        ),
        "cam": argument("Grad-CAM at this module; needs pip install 'foveal[cam]'", "LAYER"),
        "judges": JUDGES,
        **EVALUATION,
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
    "classify images: one row an image",
    f"""IMAGES are files, folders (searched to the bottom) and patterns. An image that fails is a row with an
error: the command goes on, lists these images at the end and exits with 1.

With --out, the rows of finished batches are safe whatever ends the command. The same command again goes on where it
stopped, and the rows are those of one command that was not stopped. Images that are new are appended. Images that
have a row are not predicted again; those that failed are if their file has changed since, or with --retry. Leave the
table as it is until all is done.

In folders, files with these suffixes are images, unless they are hidden; others are counted at the end:
{" ".join(SUFFIXES)}

  foveal predict runs/demo photo.png
  foveal predict runs/demo photos/ --out labels.csv
  foveal predict runs/slides scans/ 'more/**/*.svs' --locations 3,2 \\
      --out predictions.parquet

Three looks on average, more at hard images than at easy ones:

  foveal predict runs/demo photos/ --budget 3locations

Random looks, to compare with:

  foveal predict runs/demo photos/ --policy random --seed 1
""",
    {
        "model": RUN,
        "paths": positional("IMAGES", "files, folders and patterns such as 'scans/*.tif'", nargs="+"),
        "locations": LOCATIONS,
        "policy": POLICY_OF_ONE,
        "budgets": argument(
            f"stop at each image once the answer is sure, so that the mean image costs this much: {COST}; "
            "--locations is then the most looks",
            "COST",
            name="--budget",
        ),
        "at_once": AT_ONCE,
        "out": argument(f"table to write, {_names(FORMATS)} (default: print path, label, probability)", "FILE"),
        "top_k": argument("most probable classes in a row", "K"),
        "overwrite": switch("replace the file instead of going on with it"),
        "retry": switch("with --out: predict images again that failed"),
        **HOW,
        "batch_size": BATCH_SIZE,
        "threads": argument(
            "threads that open images (default: one per image of a batch, two per processor at most)",
            name="--workers",
            type=natural,
        ),
    },
    calls=("foveal.prediction.output.predict", "foveal.evaluation.thresholds.find_thresholds"),
)
def _predict(args: argparse.Namespace) -> int:
    from foveal.prediction import predict

    arguments = given(args, predict)
    until = _exit(args) if args.budgets else None
    with progress("predicting", args.quiet) as show:
        done = predict(**arguments, resume=not args.overwrite, until=until, on_progress=show)
    for row in done.rows:
        if not row["error"]:
            print(f"{printable(row['path'])}\t{printable(row['label'])}\t{row['probability']:.3f}")
    if done.out and not args.quiet:
        before = f", {done.skipped} were there" if done.skipped else ""
        print(f"{done.out}: {done.predicted} predicted{before}, in {done.seconds:.1f} s")
    if not args.quiet:
        for line in done.left_out.lines():
            print(f"foveal: {printable(line)}", file=sys.stderr)
    tell_failed(done.failed)
    if done.failed and done.out and not args.quiet:
        print(
            "foveal: the same command tries these again once their files have changed; with --retry at once",
            file=sys.stderr,
        )
    return 1 if done.failed else 0


def _exit(args: argparse.Namespace) -> Exit:
    """The exit of this budget: as it was solved before under these conditions, or solved now on the run's validation
    images.
    """
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

    if find_policy(args.policy) != GREEDY:
        raise ConfigError("--budget: looks where the model thinks best; leave --policy out")
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
        with progress("finding when to stop", args.quiet) as show:
            setting = Setting(
                batch_size=args.batch_size, device=args.device, precision=args.precision, on_progress=show
            )
            data = data_of(run, [])
            (known,) = find_thresholds(run, data, [args.budgets], locations=most, at_once=args.at_once, setting=setting)
        keep_exits(run, [known])
    if not args.quiet:
        spent = f"--locations {format_locations(known.locations)} is spent"
        when = f"no image is left before {spent}"
        if known.threshold <= 1:
            when = f"images are left once they are {100 * known.threshold:.1f} % sure, or when {spent}"
        print(f"foveal: {args.budgets}: {when}", file=sys.stderr)
    return known


@command(
    "where a model looked, and what each look added",
    """Writes one page that needs no other file: the image with the boxes, every look as the model saw it, what
each look added to the most probable classes, and the cost.

  foveal explain runs/demo photo.png --out report.html
  foveal explain runs/slides slide.svs --locations 3,2 \\
      --overlay looked.png
  foveal explain runs/demo photo.png --policy exhaustive    what every cell adds
""",
    {
        "model": RUN,
        "path": positional("IMAGE", "image file"),
        "out": argument("the page", "FILE"),
        "overlay_out": argument(
            "also write the image with the boxes alone: .png, .jpg or .webp", "FILE", name="--overlay"
        ),
        "locations": LOCATIONS,
        "policy": POLICY_OF_ONE,
        "wide": WIDE,
        **HOW,
    },
    calls=("foveal.explain.page.explain",),
)
def _explain(args: argparse.Namespace) -> int:
    from foveal.explain import explain, show

    seen = explain(**given(args, explain))
    if not args.quiet:
        show(seen, wide=args.wide)
        print(f"\nThe page is {args.out}")
    return 0


# -------------------------------------------------------------------------------------------- models, data, cost, table


@command(
    "names of the models there are",
    """Without a pattern: the models that look. Any of timm's networks can be trained too, or be the backbone of
a model that looks.

  foveal models
  foveal models 'efficientnet*'
  foveal fit demo --model tnet --help             the options of one
""",
    {"pattern": positional("PATTERN", "names with * and ?, among timm's too (default: models that look)", nargs="?")},
    reads=False,
)
def _models(args: argparse.Namespace) -> int:
    from foveal.models import list_models
    from foveal.registry import MODELS

    names = list_models(args.pattern) if args.pattern else MODELS.names()
    for name in names:
        print(name)
    if not args.pattern and not args.quiet:
        print("and the dense networks of timm and ours: foveal models '*'", file=sys.stderr)
    return 0 if names else 1


@command(
    "data sets there are, or the images of one",
    """Without NAME: the names of the data sets. With the name of a data set, or a run folder: its classes, and
how many images each split has. --data.KEY sets an option of the data set, as for foveal fit.

  foveal data
  foveal data folder --data.root photos/

Write the first test images of a run's data set as PNG files:

  foveal data runs/demo --export samples/ --count 4
""",
    {
        "name": positional("NAME", "data set or run folder (default: list the data sets)", nargs="?"),
        "data.KEY": argument("option of the data set, see foveal fit --data NAME --help", "VALUE"),
        "split": argument("images to export", default="test", choices=SPLITS),
        "export": argument("write images into this folder", "FOLDER"),
        "count": argument("how many images to write", "N", type=positive, default=8),
        "wide": switch("name every class"),
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
        tell_failed(failed)
        return 1 if failed else 0
    from foveal.display import console, counted, stacked

    shown = console()
    few = data.classes[: SHOWN_CLASSES if shown.is_terminal and not args.wide else None]
    more = "" if len(few) == len(data.classes) else f" and {len(data.classes) - len(few):,} more; --wide names all"
    splits = {split: len(images) for split in ("train", "val", "test") if (images := getattr(data, split)) is not None}
    shown.print(stacked(f"{len(data.classes):,} classes: {', '.join(map(printable, few))}{more}"))
    shown.print(stacked(", ".join(f"{split}: {counted(count, 'image')}" for split, count in splits.items())))
    for note in (*data.notes, *value_notes(data)):
        shown.print(stacked(printable(note)))
    return 0


def _size(text: str) -> int | tuple[int, int]:
    height, by, width = text.partition("x")
    return (positive(height), positive(width)) if by else positive(height)


_size.__name__ = "size"


@command(
    "parameters and multiply-accumulates of a model for one image",
    """Nothing is trained and no image is held in memory, so that any size is quick to ask for. FLOPs are twice
the MACs.

  foveal cost tnet --image-size 4096 --locations 2,1 --set backbone=resnet50
  foveal cost tnet_bagnet77.reference --image-size 224 --locations 5 --json
  foveal cost efficientnet_b0 --image-size 896 --num-classes 62
""",
    {
        "model": positional("MODEL", "name that foveal models lists, or run folder"),
        "image_size": argument("of the image: 896, or 896x1344 (height x width)", "SIDE", type=_size, required=True),
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
    from foveal.models import create_model, list_models
    from foveal.prediction import count_cost, format_locations, parse_locations
    from foveal.recipes.flags import UsageError, as_nested, parse_settings
    from foveal.runs import load

    settings = as_nested(parse_settings(args.set))
    classes = settings.pop("num_classes", args.num_classes)
    if classes is not None and (type(classes) is not int or classes < 1):
        raise UsageError(f"--set num_classes={classes}: is no number of classes; give 1 or more")
    if args.num_classes not in (None, classes):
        raise UsageError(
            f"--num-classes {args.num_classes}: --set num_classes={classes} says another number; give one of the two"
        )
    folder = Path(args.model).is_dir() and args.model not in list_models()
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
        Column("parameters", lambda row: f"{row[1].parameters:,}" if row[1] else "takes no such image"),
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
    """Each row has three kinds of numbers, in separate columns. Claimed: what a paper's own tables say of its
model and of others; two numbers where its tables contradict each other. Published: what other papers and
repositories report, with the source. Measured: mean, standard deviation and best over the seeds of your runs, from
their evaluation.json. "not found" means that a number was looked for and not found.

A run counts for a row if its model has the row's name and options, it was trained to its end, and foveal evaluate
has seen every image of the table's split: CIFAR's test images, ImageNet's val images. Runs that differ in anything
but the seed are lines of their own.

  foveal fit cifar10/attn_resnet110 --seed 1 --out runs/attn_1
  foveal evaluate runs/attn_1
  foveal table cifar
  foveal table cifar --runs elsewhere/ --json
  foveal table imagenet
""",
    {
        "name": positional("NAME", _names(TABLES)),
        "runs": argument("where to look for run folders", "FOLDER", default=None),
        "wide": WIDE,
        "json": switch("print every row, also those without a number, as JSON"),
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
        print(f"  {printable(f'{folder}: ' + reason.removeprefix(f'{folder}: '))}", file=sys.stderr)
    return 0
