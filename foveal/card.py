"""Model cards: what a run tells about its model, what it lacks to be published, and publishing it on the Hub.

The card is the file ``README.md`` of a run folder: metadata of the Hugging Face Hub, and a text between two marks.
Text outside of the marks is kept when the card is written again. So are the licence and the description of the data.

Example:
    >>> import tempfile
    >>> from foveal.models import create_classifier
    >>> from foveal.runs import ModelInfo, save_model
    >>> folder = tempfile.mkdtemp()
    >>> model = create_classifier("test_resnet", num_classes=2, image_size=64)
    >>> save_model(folder, model, ModelInfo({"name": "test_resnet", "image_size": 64}, ("cat", "dog")))
    >>> facts(Run(folder))["class_names"]
    ['cat', 'dog']
    >>> file, lacking = write_model_card(Run(folder), licence="apache-2.0")
    >>> print(lacking[0])
    description of the data: what the images show, and where they come from; give `data_description`
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from foveal.display import percent, significant, unit_for
from foveal.errors import ConfigError, RunError
from foveal.files import replacing, storing
from foveal.glimpse.base import GlimpseClassifier
from foveal.hub import PREFIX, upload
from foveal.runs import CARD, CONFIG, DATA_PATHS, WEIGHTS, ModelInfo, Run, save_model
from foveal.strict import ContentError, read_json

README, EXITS, CURVE = "README.md", "exits.json", "tradeoff.png"
BEGIN, END = "<!-- foveal: begin, written by foveal card -->", "<!-- foveal: end -->"

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""Form of a licence in the metadata of the Hub, such as ``apache-2.0``, ``cc-by-nc-4.0`` or ``other``."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def facts(run: Run) -> dict[str, Any]:
    """What a run folder tells about its model, without paths of the machine.

    Returns:
        ``model`` (name and options), ``class_names``, ``num_classes``, ``task``, ``thresholds``, ``locations``,
        ``policy``, ``channels``, ``size``, ``mean``, ``std``, ``value_range``, ``image_size``, ``shorter_side``,
        ``imports``, ``encoder`` (``name`` and ``licence`` of a frozen network that is part of the model, or None),
        ``parameters`` (numbers in the weights); ``data`` (name and options of the training data, or None),
        ``training`` (numbers of the outcome, or None), ``evaluation`` (``data``, ``split``, ``limit`` and ``points``,
        one for each setting of locations, or None) and ``early_exit`` (the same by mean cost, or None).

    Raises:
        RunError: a file of the run is damaged.
    """
    keys = ("task", "locations", "policy", "channels", "size", "mean", "std")
    more = ("value_range", "image_size", "shorter_side", "encoder")
    card = run.card
    return {
        "foveal": card.get("foveal"),
        "model": card["model"],
        "class_names": list(card["class_names"]),
        "num_classes": card.get("num_classes") or len(card["class_names"]),
        **{key: card[key] for key in keys if key in card},
        **{key: card.get(key) for key in more},
        "thresholds": card.get("thresholds", []),
        "imports": [Path(name).name for name in card.get("imports", [])],
        "parameters": _parameters(run),
        "data": _data(run),
        "training": {key: value for key, value in (run.summary or {}).items() if isinstance(value, bool | int | float)}
        or None,
        "evaluation": _points(run, "evaluation.json", "points"),
        "early_exit": _points(run, "early_exit.json", "ways"),
    }


def _parameters(run: Run) -> int | None:
    file = run.file(WEIGHTS)
    if not file.is_file():
        return None
    total = 0
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            count = 1
            for side in weights.get_slice(name).get_shape():
                count *= side
            total += count
    return total


def _data(run: Run) -> dict[str, Any] | None:
    """Name and options of the training data, without paths."""
    if not run.file(CONFIG).is_file() or not isinstance(data := run.config.get("data"), dict):
        return None
    return {key: value for key, value in data.items() if key not in DATA_PATHS and value is not None}


def _points(run: Run, name: str, key: str) -> dict[str, Any] | None:
    """Metrics and costs of an evaluation: those of learned looks, or of ways to stop."""
    file = run.file(name)
    if not file.is_file():
        return None
    again = "make it again by foveal evaluate"
    try:
        content = read_json(file)
        points = [
            {k: v for k, v in point.items() if k not in ("classes", "confusion", "single", "batched", "name", "kind")}
            | ({"way": point["name"]} if key == "ways" else {})
            for point in content[key]
            if point.get("kind", "learned") == "learned" and isinstance(point.get("accuracy"), float)
        ]
        about = {k: content.get(k) for k in ("data", "split", "limit", "image_size", "machine", "seed")}
    except (ContentError, OSError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: is damaged or not a file of foveal ({error}); {again}") from error
    return {**about, "points": points}


def missing(told: Mapping[str, Any], about: Mapping[str, Any], files: Sequence[str] = ()) -> list[str]:
    """What a model lacks to be published, one line each.

    Args:
        told: see `facts`.
        about: ``license`` and ``data_description`` of the card.
        files: names of the pictures that the card shows.
    """
    lacking = []
    if told["parameters"] is None:
        lacking.append("weights: training has not finished; go on by foveal fit `resume`")
    if not about.get("license"):
        found = told["encoder"] and told["encoder"].get("licence")
        such = f"the encoder {told['encoder']['name']} has {found}" if found else "such as apache-2.0"
        lacking.append(f"licence: who may use the weights, and for what; give `licence`, {such}")
    if not about.get("data_description"):
        lacking.append(
            "description of the data: what the images show, and where they come from; give `data_description`"
        )
    evaluation = told["evaluation"]
    if evaluation is None or not evaluation["points"]:
        lacking.append("evaluation: accuracy and cost on images that were not used before; run foveal evaluate")
    else:
        if evaluation["split"] != "test":
            lacking.append(
                f"evaluation on test images: that of the run is on {evaluation['split']} images, which training has "
                "used; run foveal evaluate with other images"
            )
        if evaluation["limit"]:
            lacking.append(
                f"evaluation on all images: that of the run is on {evaluation['limit']} of them; run foveal evaluate "
                "without `limit`"
            )
    if not told["class_names"]:
        lacking.append("names of the classes: the model answers with numbers; train it with named classes")
    if told["imports"]:
        lacking.append(f"code: the model needs --import {', '.join(told['imports'])}, which is not published with it")
    if told["model"]["name"].startswith("python:"):
        lacking.append("a registered model: it was made in Python, and only its code can load it")
    if not files:
        lacking.append(
            "picture: one of the curve is drawn by foveal evaluate, one of the looks by foveal explain --overlay; give "
            "`picture`"
        )
    return lacking


def write_model_card(
    model: Run | str | Path,
    *,
    licence: str | None = None,
    data_description: str | None = None,
    title: str | None = None,
    picture: str | Path | None = None,
    repo: str | None = None,
) -> tuple[Path, list[str]]:
    """Write the card of a run, ``README.md`` in its folder.

    Args:
        model: the run folder.
        licence: licence of the weights as on the Hub, such as ``apache-2.0``; that of the card before if None. It is
            never guessed.
        data_description: what the images show, and where they come from; that of the card before if None.
        title: title; by default the name of the folder.
        picture: a picture to show, for example by `foveal.explain.explain`; it is copied into the folder.
        repo: ``owner/name`` on the Hub, for the example.

    Returns:
        The file, and what is missing to publish the model, see `missing`.

    Raises:
        ConfigError: the licence or the picture cannot be used, or the metadata of the card cannot be read.
        RunError: a file of the run is damaged.
        StorageError: the card cannot be written.
    """
    run = model if isinstance(model, Run) else Run(model)
    if picture is not None:
        picture = Path(picture)
        if not picture.is_file():
            raise ConfigError(f"`picture` {picture}: there is no such file; check the path")
        if picture.suffix.lower() not in PICTURES:
            raise ConfigError(f"`picture` {picture}: is no picture; give a file that is {', '.join(PICTURES)}")
        kept = run.path / f"looks{picture.suffix.lower()}"
        if not (kept.exists() and kept.samefile(picture)):
            with storing(kept, "make space"), replacing(kept) as unfinished:
                shutil.copyfile(picture, unfinished)
    text, lacking = _compose(run, licence, data_description, title, repo)
    with storing(run.path / README, "make space"), replacing(run.path / README) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return run.path / README, lacking


def pictures_of(run: Run) -> list[str]:
    """Names of the pictures of a run that its card shows."""
    looks = [f"looks{suffix}" for suffix in PICTURES]
    return [name for name in (*looks, CURVE) if run.file(name).is_file()]


def push(
    model: Run | str | Path | GlimpseClassifier,
    repo: str,
    *,
    licence: str | None = None,
    data_description: str | None = None,
    private: bool = False,
) -> str:
    """Publish a model on the Hugging Face Hub, with its card. `foveal.load` reads it: ``hf-hub:owner/name``.

    The repository gets ``model.safetensors``, ``config.json``, thresholds of early exit, pictures and ``README.md``. It
    gets no configuration of the training, which has paths of this machine, and no code.

    Args:
        model: a run folder, or a model. A model whose weights are those of the run from which it was loaded is
            published with the card of the run.
        repo: ``owner/name``; it is created if it does not exist.
        licence, data_description: see `write_model_card`.
        private: whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the card names no licence and none is given, or the model cannot be loaded elsewhere.
        RunError: a file of the run is damaged.
        StorageError: the Hub cannot be reached, or refuses the upload.
    """
    repo = repo.removeprefix(PREFIX)
    with tempfile.TemporaryDirectory() as folder:
        stage, own = Path(folder) / "stage", Path(folder) / "model"
        if isinstance(model, torch.nn.Module):
            model = _saved(model, own)
        run = model if isinstance(model, Run) else Run(model)
        text, lacking = _compose(run, licence, data_description, None, repo)
        for line in lacking:
            if line.startswith(("weights", "licence", "a registered model")):
                raise ConfigError(f"{repo}: cannot be published without {line}")
        stage.mkdir()
        for name in (WEIGHTS, EXITS, *pictures_of(run)):
            if run.file(name).is_file():
                shutil.copyfile(run.file(name), stage / name)
        card = {**run.card, "imports": facts(run)["imports"]}
        (stage / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (stage / README).write_text(text, encoding="utf-8")
        return upload(stage, repo, private=private)


def _saved(model: torch.nn.Module, folder: Path) -> Run:
    """The run from which a model was loaded if it has the same weights, or a new folder with the model."""
    if not isinstance(model, GlimpseClassifier) or not model.spec:
        raise ConfigError(
            f"{type(model).__name__}: has no name by which it can be made again; make it by foveal.create_classifier"
        )
    if model.source is not None and (Path(model.source) / WEIGHTS).is_file():
        stored, mine = load_file(Path(model.source) / WEIGHTS), model.state_dict()
        if stored.keys() == mine.keys() and all(torch.equal(mine[key].cpu(), stored[key]) for key in stored):
            return Run(model.source)
    ranges = {key: getattr(model, key, None) for key in ("value_range", "image_size", "shorter_side")}
    encoder = None if model.source is None else Run(model.source).card.get("encoder")
    save_model(folder, model, ModelInfo(dict(model.spec), tuple(model.class_names), **ranges, encoder=encoder))
    run = Run(folder)
    if model.task.thresholds:
        names = model.class_names
        run.keep_thresholds(
            [{"label": names[index], "threshold": least, "at": "given"} for index, least in model.task.thresholds]
        )
    run.keep_policy(model.usual_policy)
    return run


# ------------------------------------------------------------------------------------------------------------ the text


def _compose(
    run: Run, licence: str | None, data_description: str | None, title: str | None, repo: str | None
) -> tuple[str, list[str]]:
    """The text of the card, with what is kept of the card before; and what is missing."""
    from huggingface_hub import EvalResult, ModelCardData

    if licence is not None and LICENCE.fullmatch(licence) is None:
        raise ConfigError(f"`licence` {licence}: is no licence of the Hub; write it as apache-2.0, cc-by-4.0 or other")
    before, around = _earlier(run)
    told, shown = facts(run), pictures_of(run)
    about = {
        "license": licence or before.get("license"),
        "data_description": data_description or before.get("data_description"),
    }
    title = title or before.get("model_name") or run.path.resolve().name
    results = []
    if evaluation := told["evaluation"]:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=str(evaluation["data"]),
                dataset_name=str(evaluation["data"]),
                dataset_split=evaluation["split"],
                metric_type="accuracy",
                metric_name=f"accuracy, {_looks(point)}",
                metric_value=point["accuracy"],
            )
            for point in evaluation["points"]
        ]
    tags = ["foveal", "image-classification", told["model"]["name"].partition(".")[0]]
    known = ("license", "library_name", "pipeline_tag", "tags", "model_name", "data_description", "model-index")
    kept: dict[str, Any] = {key: value for key, value in about.items() if value}
    kept |= {key: value for key, value in before.items() if key not in known}
    metadata = ModelCardData(
        library_name="foveal",
        pipeline_tag="image-classification",
        tags=list(dict.fromkeys([*(before.get("tags") or []), *tags])),
        model_name=title,
        eval_results=results or None,
        **kept,
    )
    body = "\n".join([BEGIN, *_body(told, about, title, shown, repo), END])
    first, last = around
    return f"---\n{metadata.to_yaml()}\n---\n{first}{body}{last}", missing(told, about, shown)


def _earlier(run: Run) -> tuple[dict[str, Any], tuple[str, str]]:
    """Metadata of the card before, and its text before and after the marks."""
    from huggingface_hub import ModelCard

    file = run.file(README)
    if not file.is_file():
        return {}, ("\n", "\n")
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=False)
        values = {
            **card.data.to_dict(),
            "model_name": getattr(card.data, "model_name", None),
        }  # it is moved into the results
        metadata = {key: value for key, value in values.items() if value is not None}
    except Exception as error:  # the YAML parser and the checks of the Hub raise various exceptions
        what = str(error).partition("\n")[0]
        raise ConfigError(f"{file}: its metadata cannot be read ({what}); correct or remove the file") from error
    first, begun, rest = card.text.partition(BEGIN)
    _, ended, last = rest.partition(END)
    return metadata, (first, last) if begun and ended else (f"{card.text.rstrip()}\n\n", "\n")


def _body(
    told: Mapping[str, Any], about: Mapping[str, Any], title: str, shown: Sequence[str], repo: str | None
) -> list[str]:
    """Lines of the text."""
    model, names = told["model"], told["class_names"]
    lines = [f"# {title}", ""]
    for name in shown:
        lines += [f"![{'accuracy and cost' if name == CURVE else 'where the model looks'}]({name})", ""]
    where = f"{PREFIX}{repo}" if repo else f"{PREFIX}owner/name"
    lines += [
        "## How to use",
        "",
        "```python",
        "import foveal",
        "",
        f'model = foveal.load("{where}")',
        'seen = foveal.classify(model, "image.png")',
        "print(seen.label, float(seen.probability))",
        "foveal.show(seen)  # where it looked, and what each look added",
        "```",
        "",
        "## Model",
        "",
        f"- model: `{model['name']}`, {told['parameters'] or 0:,} parameters and statistics",
    ]
    if chosen := {key: value for key, value in model.items() if key != "name" and value not in (None, False)}:
        lines.append(f"- options: {', '.join(f'`{key}={value}`' for key, value in chosen.items())}")
    if encoder := told["encoder"]:
        name, licence = (_escaped(encoder.get(key) or "not known") for key in ("name", "licence"))
        lines.append(f"- encoder: {name}, frozen; licence of its weights: {licence}")
    if "size" in told:
        lines.append(f"- each look: {told['size'][0]} x {told['size'][1]} px, {told.get('channels', 3)} channels")
    if told.get("locations"):
        lines.append(f"- levels: {_levels(told['locations'])}")
    if told["image_size"]:
        lines.append(f"- images are resized to {told['image_size']} x {told['image_size']} px before any look")
    if told["value_range"]:
        lines.append(f"- pixel values from {told['value_range'][0]:g} to {told['value_range'][1]:g}")
    listed = ", ".join(map(_escaped, names[:50])) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
    task = told.get("task", "multiclass")
    lines.append(f"- {told['num_classes']} classes{': ' if names else ''}{listed}; task: {task}")
    for one in told["thresholds"]:
        lines.append(f"- {_escaped(one['label'])} is predicted from {100 * one['threshold']:.3g} % ({one['at']})")
    lines += ["", "## Data", "", about.get("data_description") or "Not described yet.", ""]
    if told["data"]:
        options = ", ".join(f"`{key}={value}`" for key, value in told["data"].items() if key != "name")
        lines += [f"Data set `{told['data'].get('name')}`{', ' if options else ''}{options}.", ""]
    lines += _results(told)
    lines += ["## Licence", "", about.get("license") or "Not chosen yet: without a licence nobody may use the weights."]
    return lines


def _results(told: Mapping[str, Any]) -> list[str]:
    lines = ["## Results", ""]
    if told["evaluation"] is None or not told["evaluation"]["points"]:
        return [*lines, "Not evaluated yet.", ""]
    for name, heading in (("evaluation", "looks"), ("early_exit", "budget")):
        found = told[name]
        if found is None or not found["points"]:
            continue
        points = found["points"]
        macs = unit_for("MAC", [point["macs"] for point in points])
        images = f"{points[0].get('images') or 0:,} {found['split']} images of {_escaped(str(found['data']))}"
        limit = ", a random part" if found["limit"] else ""
        lines += [
            f"On {images}{limit}{'' if name == 'evaluation' else '; looking stops early'}, with 95 % intervals:",
            "",
            f"| {heading} | accuracy, % | interval | cost per image, {macs.name} |",
            "|---|---|---|---|",
        ]
        for point in points:
            interval = point.get("interval")
            ends = "" if not interval else f"{percent(interval[0])} to {percent(interval[1])}"
            what = point.get("way") or _looks(point)
            lines.append(f"| {_escaped(what)} | {percent(point['accuracy'])} | {ends} | {macs(point['macs'])} |")
        lines.append("")
    return lines


def _looks(point: Mapping[str, Any]) -> str:
    locations = point.get("locations")
    if isinstance(locations, int | float):
        return f"{significant(locations)} on average"
    return f"locations {','.join(map(str, locations or [])) or '0'}"


def _levels(locations: Sequence[int]) -> str:
    first, *below = locations
    counts = [f"{first} {'look' if first == 1 else 'looks'} in the grid of the first look"]
    counts += [f"{count} in each grid of level {level}" for level, count in enumerate(below, start=2)]
    return ", then ".join(counts)


def _escaped(text: str) -> str:
    """Text for a cell of a table in Markdown."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)
