"""Prediction: classify many images, one row per image (`predict`), and count the cost of a model (`count_cost`).

    predict(model, paths, *, locations=None, policy="greedy", batch_size=8, threads=None, device="auto", precision="32",
            top_k=5, seed=0, until=None, out=None, resume=True, retry=False, sinks=(), on_progress=None) -> Summary
    classify(model, images, *, locations=None, policy="greedy", batch_size=16, device=None) -> Classification
    Predictor(model, *, device=None, precision="32")
        .open(image), .classify(images), .folded(), (views, locations, policy, ...)
    look_until(model, images, threshold, locations=None, at_once=1, contributions=False) -> Classification
    fold_norms(model) -> GlimpseClassifier                      # a faster copy with equal results; predict uses it
    count_cost(model, image_size, locations=None, policy="greedy") -> Cost
    parse_locations("2,1") -> (2, 1)
    parse_location_sweep("0..6") -> [(), (1,), ..., (6,)]       # for evaluation

Example:
    >>> parse_location_sweep("1..2,1")
    [(1, 1), (2, 1)]
"""

from foveal.images import SUFFIXES
from foveal.prediction.cost import Cost, count_cost
from foveal.prediction.device import autocast, find_device, machine_name
from foveal.prediction.early_exit import Exit, look_until, parse_cost, read_exits, write_exits
from foveal.prediction.folding import fold_norms
from foveal.prediction.locations import format_locations, parse_location_sweep, parse_locations
from foveal.prediction.looks import IMAGE_KEYS, LOOK_KEYS, describe_image, describe_looks, explained_class
from foveal.prediction.output import Sink, Summary, fingerprint, predict
from foveal.prediction.predictor import Predictor, classify
from foveal.prediction.rows import COLUMNS, SCHEMA, find_images, make_row, predict_rows

__all__ = [
    "COLUMNS",
    "IMAGE_KEYS",
    "LOOK_KEYS",
    "SCHEMA",
    "SUFFIXES",
    "Cost",
    "Exit",
    "Predictor",
    "Sink",
    "Summary",
    "autocast",
    "classify",
    "count_cost",
    "describe_image",
    "describe_looks",
    "explained_class",
    "find_device",
    "find_images",
    "fingerprint",
    "fold_norms",
    "format_locations",
    "look_until",
    "machine_name",
    "make_row",
    "parse_locations",
    "parse_cost",
    "parse_location_sweep",
    "predict",
    "predict_rows",
    "read_exits",
    "write_exits",
]
