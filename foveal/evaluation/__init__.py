"""Evaluation of models: metrics, calibration, cost, thresholds, occlusion, faithfulness and early exit.

Programs; each returns a result with ``.table(wide=False)`` for rich, ``.as_dict()``, ``.write(folder)`` and
``.draw(file)``:

    evaluate(model, data, *, locations=None, policies=(), against=(), measure="quick", setting=Setting()) -> Evaluation
    compare(models, data, *, locations=None, measure="quick", setting=Setting()) -> Comparison
    occlude(model, data, *, locations=None, policies=(), judges=(), setting=Setting()) -> Occlusion
    evaluate_faithfulness(model, data, *, locations=None, attention=None, cam=None, judges=(), setting=Setting())
        -> Faithfulness
    evaluate_early_exit(model, data, budgets, *, locations=None, at_once=1, setting=Setting(batch_size=8)) -> EarlyExit
    fit_threshold(model, data, at, *, label=None, locations=None, setting=Setting()) -> Decisions
    paper_table(name, runs="runs") -> PaperTables
    visible(data, *, backbone=None, pretrained=False, look_size=None, looks=32, steps=400, ...) -> Visibility

What they share:

    Setting(split, batch_size, workers, device, precision, seed, metrics, limit, on_progress)
    Bench(models, data, setting): loaded models, and images; Strategy(locations, policy)
    point.metrics: {name: Metric(value, interval)}, see `foveal.metrics`

Parts:

    find_thresholds(model, data, budgets, ...) -> the confidence thresholds for mean costs
    measure(model, views_of, ...) -> Timing; fit_temperature(logits, target); coverage(boxes, sizes);
        diversity(boxes, sizes)

Example:
    >>> Strategy((2, 1), "random")
    Strategy(locations=(2, 1), policy='random')
"""

from foveal.evaluation.calibration import fit_temperature
from foveal.evaluation.comparison import ComparedPoint, Comparison, compare, first_run, pareto
from foveal.evaluation.decisions import Decisions, DecisionThreshold, fit_threshold
from foveal.evaluation.faithfulness import Curve, Faithfulness, ObjectInside, PointingGame, evaluate_faithfulness
from foveal.evaluation.looks import chosen_boxes, coverage, diversity
from foveal.evaluation.occlusion import Occlusion, OcclusionPoint, occlude
from foveal.evaluation.papers import PaperTables, paper_table
from foveal.evaluation.protocol import Bench, Scores, Setting, Strategy, score_batches
from foveal.evaluation.results import Result
from foveal.evaluation.thresholds import EarlyExit, ExitPoint, evaluate_early_exit, find_thresholds
from foveal.evaluation.timing import (
    Measure,
    TimedModel,
    Timing,
    Trial,
    best_batch,
    measure,
    measure_in_turn,
    measure_locations,
)
from foveal.evaluation.tradeoff import DenseCost, EvaluatedPoint, Evaluation, evaluate
from foveal.evaluation.visibility import Visibility, visible

__all__ = [
    "Bench",
    "ComparedPoint",
    "Comparison",
    "Curve",
    "DecisionThreshold",
    "Decisions",
    "DenseCost",
    "EarlyExit",
    "EvaluatedPoint",
    "Evaluation",
    "ExitPoint",
    "Faithfulness",
    "Measure",
    "ObjectInside",
    "Occlusion",
    "OcclusionPoint",
    "PaperTables",
    "PointingGame",
    "Result",
    "Scores",
    "Setting",
    "Strategy",
    "TimedModel",
    "Timing",
    "Trial",
    "Visibility",
    "best_batch",
    "chosen_boxes",
    "compare",
    "coverage",
    "diversity",
    "evaluate",
    "evaluate_early_exit",
    "evaluate_faithfulness",
    "find_thresholds",
    "first_run",
    "fit_temperature",
    "fit_threshold",
    "measure",
    "measure_in_turn",
    "measure_locations",
    "occlude",
    "paper_table",
    "pareto",
    "score_batches",
    "visible",
]
