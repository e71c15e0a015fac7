"""What all evaluations share: the setting, loaded models with their images, and a pass of a model over images.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> bench = Bench([model], data, Setting(device="cpu", limit=8))
    >>> scores = bench.score(bench.models["model"], [Strategy(()), Strategy((2,), "random")]).scores
    >>> [(one.strategy.kind, one.locations, len(one.answers), float(one.looks.number.mean())) for one in scores]
    [('learned', (), 8, 0.0), ('random', (2,), 8, 2.0)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.data import Batch, DataModule, Loader, check_classes
from foveal.data.module import Encoder
from foveal.data.values import check_values
from foveal.draws import Draws
from foveal.embedding.encoders import weights_digest
from foveal.errors import ConfigError, DataError
from foveal.evaluation.looks import Looks, chosen_boxes
from foveal.evaluation.timing import Measure, TimedModel, Timing, measure_locations, measure_steps
from foveal.glimpse.base import GlimpseClassifier, whole_locations
from foveal.glimpse.tile_scan import TileScan
from foveal.glimpse.tiles import TileClassifier
from foveal.images import Look, Views
from foveal.metrics import METRICS, Answers, Metric, check_metric, choose_metrics, compute_metrics
from foveal.prediction.checks import check_whole
from foveal.prediction.device import autocast, check_precision, find_device, machine_name
from foveal.prediction.predictor import Model, Predictor
from foveal.runs import Run

Progress = Callable[[int, int, str], None]
"""Called with the number of finished steps, the number of all steps, and a description."""


@dataclass(frozen=True)
class Setting:
    """The images of an evaluation, and how models run.

    Attributes:
        split: images to use; ``"test"`` if None, or ``"val"`` where there is no test split.
        batch_size: images at a time.
        workers: processes that read images ahead.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: of policies that draw, and of the images that ``limit`` draws.
        metrics: names of metrics, see `foveal.metrics.choose_metrics`; the default ones if None.
        limit: use this many images of a split, drawn by the seed; all if None.
        on_progress: see `Progress`.

    Raises:
        ConfigError: a number is too small, or the precision or a metric is unknown.
    """

    split: str | None = None
    batch_size: int = 32
    workers: int = 0
    device: str | torch.device = "auto"
    precision: str = "32"
    seed: int = 0
    metrics: Sequence[str] | None = None
    limit: int | None = None
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        check_whole("workers", self.workers, 0)
        check_whole("seed", self.seed, 0)
        if self.limit is not None:
            check_whole("limit", self.limit)
        for name in self.metrics or ():
            check_metric("metrics", name)
        check_precision(self.precision)

    def steps(self, what: str, total: int) -> Callable[..., None]:
        """A function that reports one step of ``what``, or as many as it is called with, out of ``total``."""
        done = 0

        def step(count: int = 1) -> None:
            nonlocal done
            done += count
            if self.on_progress is not None:
                self.on_progress(done, total, what)

        return step


def check_setting(setting: Any) -> None:
    """Check that an argument ``setting`` is a `Setting`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(setting, Setting):
        raise ConfigError(
            f"`setting` {setting}: is not a Setting; give foveal.Setting(...) with the same names as arguments"
        )


DEFAULT = Setting()
"""The setting unless another is given."""


class Strategy(NamedTuple):
    """The locations that a model gets, and the policy that chooses them."""

    locations: tuple[int, ...]
    policy: str = "greedy"

    @property
    def kind(self) -> str:
        """What results call the policy: ``"learned"`` for the model's own, else its name."""
        return "learned" if self.policy == "greedy" else self.policy

    @property
    def looks(self) -> int:
        """Looks at an image, the first included. The time that a pass takes is nearly in proportion to them."""
        return 1 + int(np.cumprod(self.locations).sum())


# ---- models and images


class Bench:
    """Loaded models, and the images on which they are evaluated.

    Args:
        models: classifiers, dense networks and run folders; one that is given twice is used once. Or these by name.
        data: images with labels.
        setting: which images, and how.

    Attributes:
        models: classifiers by name, on the device, in eval mode.
        data: the data without augmentation.
        split, images: the split and its images.
        device: where the models are.
        metrics: names of the metrics to compute.
        errors: (path or name, one sentence) of each image that could not be read; such an image counts nowhere.

    Raises:
        DataError, ConfigError: a model has other classes, or was trained on another range of values; or there is no
            such split.
        RunError: a run folder is missing or damaged.
    """

    def __init__(self, models: Sequence[Model] | Mapping[str, Any], data: DataModule, setting: Setting) -> None:
        check_setting(setting)
        named = models if isinstance(models, Mapping) else dict(zip(names_of(models), models, strict=True))
        self.setting = setting
        self.device = find_device(setting.device)
        self.models = {name: ready_for(model, data, self.device) for name, model in named.items()}
        self.data, self.split = plain_split(data, setting.split)
        self.images = self.data.split(self.split)
        self.metrics = choose_metrics(setting.metrics, len(data.classes))
        self.errors: list[tuple[str, str]] = []

    @property
    def ranks(self) -> bool:
        """Whether a metric needs all probabilities."""
        return any(METRICS[name].ranks for name in self.metrics)

    def answers(self, model: GlimpseClassifier, logits: Tensor, target: Tensor) -> Answers:
        """A model's answers from logits and targets, with what the metrics need."""
        return Answers.of(logits, target, task=model.task, keep_probabilities=self.ranks)

    def measure(self, answers: Answers) -> dict[str, Metric]:
        """The metrics of answers."""
        return compute_metrics(answers, self.metrics)

    def loader(self, models: Iterable[GlimpseClassifier], split: str | None = None) -> Loader:
        """Loads batches of the split, or of another one; the first looks of these models are read ahead."""
        how = self.setting
        return Loader(
            self.data.split(split or self.split),
            batch_size=how.batch_size,
            workers=how.workers,
            seed=how.seed,
            first_looks=partial(_first_looks, list(models)),
            shuffle=how.limit is not None,
            limit=how.limit,
        )

    def batches(self, split: str | None = None) -> Iterator[Batch]:
        """The batches of a split, on the device; some may have no image that could be opened."""
        for batch in self.loader(self.models.values(), split):
            self.errors += batch.errors
            yield batch.to(self.device) if len(batch) else batch

    def readable(self, batch: Batch) -> np.ndarray:
        """The rows of a batch that could be read, after models looked at it; notes the others."""
        rows, errors = readable(batch)
        self.errors += errors
        return rows

    def score(
        self,
        model: GlimpseClassifier,
        strategies: Sequence[Strategy],
        split: str | None = None,
        on_step: Callable[[int], None] = lambda looks: None,
        keep_logits: bool = False,
    ) -> Pass:
        """Classify the images by each strategy, see `score_batches`."""
        how = self.setting
        found = score_batches(
            model,
            self.loader([model], split),
            strategies,
            precision=how.precision,
            seed=how.seed,
            on_step=on_step,
            keep_logits=keep_logits,
            keep_probabilities=self.ranks,
        )
        self.errors += found.errors
        return found

    def views_of(self, places: np.ndarray) -> Callable[[int], Views]:
        """A function that opens the first n of the images at these places in the data set."""
        return lambda n: self.images.batch(0, places[:n].tolist(), 0).to(self.device).views

    def time(
        self, locations: Mapping[str, Sequence[tuple[int, ...]]], places: Mapping[str, np.ndarray], measure: Measure
    ) -> dict[str, dict[tuple[int, ...], tuple[Timing, Timing]]]:
        """Time the models in turn, see `foveal.evaluation.measure_locations`.

        Args:
            locations: for each model, by name.
            places: the images for each model, by their places in the data set.
            measure: how long.
        """
        timed = [
            TimedModel(model, locations[name], self.views_of(places[name]), len(places[name]))
            for name, model in self.models.items()
        ]
        step = self.setting.steps("timings", measure_steps(len(timed), measure))
        found = measure_locations(timed, measure, precision=self.setting.precision, on_step=step)
        return dict(zip(self.models, found, strict=True))

    def circumstances(self) -> dict[str, Any]:
        """On what, where and how the evaluation was made, for a file of results."""
        from foveal import __version__

        return {
            "data": self.data.name,
            "split": self.split,
            "limit": self.setting.limit,
            "classes": len(self.data.classes),
            "device": str(self.device),
            "machine": machine_name(self.device),
            "threads": torch.get_num_threads(),
            "foveal": __version__,
            "torch": torch.__version__,
            "precision": self.setting.precision,
            "seed": self.setting.seed,
            "metrics": None if self.setting.metrics is None else list(self.setting.metrics),
        }

    def failed(self) -> tuple[tuple[str, str], ...]:
        """The errors, each once."""
        return tuple(dict.fromkeys(self.errors))

    def check_read(self, images: int) -> None:
        """Check that at least one image was read.

        Raises:
            DataError: none was.
        """
        if not images:
            raise nothing_read(self.errors)


def names_of(models: Sequence[Any]) -> list[str]:
    """A name for each model: its run folder, or a number."""
    paths = [path_of(model) for model in models]
    return [
        str(path) if isinstance(path, str | Path) else f"model {i}" if i else "model" for i, path in enumerate(paths)
    ]


def path_of(model: Any) -> Any:
    """The folder of a run; anything else as it is."""
    return model.path if isinstance(model, Run) else model


def ready_for(model: Any, data: DataModule, device: torch.device) -> GlimpseClassifier:
    """A classifier for this data, on the device, in eval mode.

    Raises:
        DataError, ConfigError: it has other classes, or was trained on another range of values.
        RunError: the run folder is missing or damaged.
    """
    classifier = Predictor(path_of(model), device=device).model
    if classifier.class_names:
        check_classes(classifier.class_names, data)
    elif classifier.num_classes != len(data.classes):
        what = f"has {len(data.classes)} classes, the model {classifier.num_classes}"
        raise ConfigError(f"{data.name}: {what}; use data with the model's classes")
    if data.task.name != classifier.task.name:
        raise ConfigError(
            f"{data.name}: its targets are {data.task.name}, the model is {classifier.task.name}; use data of the same "
            "task"
        )
    check_values(classifier, data)
    if data.encoder is not None and isinstance(classifier, TileClassifier):
        _check_features(classifier, data.encoder, data.name)
    return classifier


def _check_features(model: TileClassifier, encoder: Encoder, name: str) -> None:
    """Check that features are of the network and the tiles of a model, as far as both are known.

    Raises:
        DataError: they are of others.
    """
    if isinstance(model.encoder, nn.Identity) or encoder.weights is None:
        return
    own = {"tile_size": model.size[0], "tile_stride": model.stride, "scale": model.scale}
    own |= {"coarse": model.coarse} if isinstance(model, TileScan) else {}
    for key, value in own.items():
        if encoder.options.get(key) != value:
            what = f"{key.replace('_', ' ')} of {encoder.options.get(key)}, and the model one of {value}"
            raise DataError(f"{name}: its features have a {what}; give features of the same tiles")
    if encoder.digest != weights_digest(model.encoder):
        raise DataError(f"{name}: its features are of another network than the model's; make them again by the model")


def plain_split(data: DataModule, split: str | None) -> tuple[DataModule, str]:
    """The data without augmentation, and the split to use, see `Setting`."""
    if data.train is not None:
        data = replace(data, train=data.train.plain())
    return data, split or ("test" if data.test is not None and len(data.test) else "val")


def sweep_of(locations: int | Sequence[int | Sequence[int]]) -> list[tuple[int, ...]]:
    """Several locations as tuples. A number stands for one grid: ``[0, 1]`` means ``[(0,), (1,)]``.

    Raises:
        ConfigError: one is not a whole number, or a sequence of them.
    """
    every = locations if isinstance(locations, Iterable) and not isinstance(locations, str) else [locations]
    return [whole_locations(each) for each in every]


def strategies_of(
    model: GlimpseClassifier, locations: int | Sequence[int | Sequence[int]] | None, policies: Sequence[str]
) -> list[Strategy]:
    """Learned looks at each of several locations, then random ones and those of other policies.

    Args:
        model: a classifier.
        locations: looks per grid at each level; from none to the model's own if None.
        policies: further policies.

    Raises:
        ConfigError: locations or a policy that the model does not have.
    """
    model.check_policies(policies)
    if locations is None:
        first, *rest = model.locations or (0,)
        locations = [(k, *rest) if k else () for k in range(first + 1)]
    learned = [Strategy(model.resolve_locations(each)) for each in sweep_of(locations)]
    others = [p for p in dict.fromkeys(["random", *map(str, policies)]) if p in model.policies and p != "greedy"]
    further = [Strategy(each.locations, policy) for policy in others for each in learned if each.locations]
    # "exhaustive" depends on the number of levels alone: one strategy for each number is enough.
    deepest = {len(each.locations): each for each in further if each.policy == "exhaustive"}
    return learned + [each for each in further if each.policy != "exhaustive" or deepest[len(each.locations)] == each]


def _first_looks(models: Sequence[GlimpseClassifier], size: tuple[int, int]) -> list[Look]:
    return list(dict.fromkeys(look for model in models for look in model.first_looks(size)))


def readable(batch: Batch) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The rows of a batch that could be read when models looked at it, and (name, one sentence) of each other image."""
    bad = batch.views.errors
    rows = np.array([i for i in range(len(batch)) if i not in bad], dtype=np.int64)
    return rows, [(f"image {batch.index[i]}", reason) for i, reason in bad.items()]


def nothing_read(errors: Sequence[tuple[str, str]]) -> DataError:
    """The error for data of which no image could be read."""
    reason = errors[0][1] if errors else "there are none"
    return DataError(f"none of the {len(errors)} images could be read ({reason}); check the data")


def validation_bench(models: Sequence[Model] | Mapping[str, Any], data: DataModule, setting: Setting) -> Bench:
    """A `Bench` with the images on which thresholds are found: those of the split, ``"val"`` if None.

    Raises:
        DataError: there are no validation images; see also `Bench`.
    """
    check_setting(setting)
    split = setting.split or "val"
    if split == "val" and not (data.val is not None and len(data.val)):
        what = "thresholds are found on validation images, and there are none"
        raise DataError(f"{data.name}: {what}; give the data a val split")
    return Bench(models, data, replace(setting, split=split))


# ---- a pass over the images


@dataclass(frozen=True)
class Scores:
    """Predictions of a model for N images by one strategy.

    Attributes:
        strategy: the strategy.
        locations: the locations taken; ``exhaustive`` takes all cells of each level.
        answers: the predictions.
        looks: the looks at each image.
        logits: (N, classes) float32; None unless they were to be kept.
    """

    strategy: Strategy
    locations: tuple[int, ...]
    answers: Answers
    looks: Looks
    logits: Tensor | None = None


class Pass(NamedTuple):
    """One pass of a model over images.

    Attributes:
        scores: of each strategy.
        places: (N,) place in the data set of each image that could be read.
        size: (height, width) of the image of median area.
        errors: (path or name, one sentence) of each image that could not be read.
    """

    scores: list[Scores]
    places: np.ndarray
    size: tuple[int, int]
    errors: list[tuple[str, str]]


def score_batches(
    model: GlimpseClassifier,
    batches: Iterable[Batch],
    strategies: Sequence[Strategy],
    *,
    precision: str = "32",
    seed: int = 0,
    on_step: Callable[[int], None] = lambda looks: None,
    keep_logits: bool = False,
    keep_probabilities: bool | None = None,
) -> Pass:
    """Classify every batch by each strategy.

    Args:
        model: the model, on its device, in eval mode.
        batches: images with labels.
        strategies: what to try.
        precision: see `foveal.prediction.autocast`.
        seed: of policies that draw; what they draw depends on the image's place in the data set alone.
        on_step: called with the looks that a strategy takes at an image, after each strategy of each batch.
        keep_logits: keep the logits, 4 bytes for each class of each image.
        keep_probabilities: see `Answers.of`.

    Raises:
        DataError: no image could be read.
    """
    errors: list[tuple[str, str]] = []
    sizes, index = [], []
    taken: list[tuple[int, ...]] = [() for _ in strategies]
    parts: list[list[tuple[Answers, Looks, Tensor | None]]] = [[] for _ in strategies]
    device = model.mean.device
    for batch in batches:
        errors += batch.errors
        if not len(batch):
            on_step(sum(strategy.looks for strategy in strategies))
            continue
        batch = batch.to(device)
        draws, seen = Draws(seed, 0, batch.index), []
        with torch.inference_mode(), autocast(precision, device):
            for strategy in strategies:
                places, policy = strategy
                seen.append(model(batch.views, locations=places, policy=policy, draws=draws, contributions=False))
                on_step(strategy.looks)
        rows, bad = readable(batch)
        errors += bad
        sizes.append(batch.views.sizes[rows])
        index.append(batch.index[rows])
        target = batch.target.cpu()[rows]
        for i, (strategy, result) in enumerate(zip(strategies, seen, strict=True)):
            taken[i] = locations_taken(result, strategy)
            if len(rows):
                logits = result.logits.cpu()[rows]
                looks = Looks.of(chosen_boxes(result.glimpses, len(batch))[rows], sizes[-1])
                answers = Answers.of(logits, target, task=model.task, keep_probabilities=keep_probabilities)
                parts[i].append((answers, looks, logits.float() if keep_logits else None))
    if not sum(map(len, index)):
        raise nothing_read(errors)
    scores = []
    for strategy, places, of_batches in zip(strategies, taken, parts, strict=True):
        answers, looks, logits = zip(*of_batches, strict=True)
        kept = torch.cat(logits) if keep_logits else None
        scores.append(Scores(strategy, places, Answers.cat(answers), Looks.cat(looks), kept))
    return Pass(scores, np.concatenate(index), median_size(sizes), errors)


def median_size(sizes: Sequence[np.ndarray]) -> tuple[int, int]:
    """(height, width) of the image of median area, of batches of (n, 2) sizes."""
    every = np.concatenate(sizes)
    height, width = every[np.argsort(every.prod(1), kind="stable")[len(every) // 2]].tolist()
    return height, width


def locations_taken(seen: Classification, strategy: Strategy) -> tuple[int, ...]:
    """The locations taken by a strategy: ``exhaustive`` takes all cells of each level."""
    if strategy.policy != "exhaustive":
        return strategy.locations
    most = np.bincount(seen.glimpses.image).argmax()  # images that are not square may have fewer cells
    looks = np.bincount(seen.glimpses.level[seen.glimpses.image == most])[1:]
    return tuple((looks[1:] // looks[:-1]).tolist())
