"""Accuracy against cost, counted and measured, at every budget; and what is left of it where the looks are hidden.

    evaluate(model, data, *, budgets=None, against=None, split=None, batch_size=32, workers=0, device="auto", precision="32", seed=0,
             measure="quick", out=None, on_progress=None, policies=()) -> Evaluation
                                       # out: folder for evaluation.json and tradeoff.png
    compare(models, data, *, budgets=None, split=None, batch_size=32, workers=0, device="auto", precision="32", seed=0,
            measure="quick", out=None, on_progress=None) -> Comparison     # out: folder for comparison.json and comparison.png
    first_run(models) -> the Run whose data a comparison uses; pareto(costs, values); paired_interval(first, second)
    said(logits, target, temperature=1.0) -> Said; expected_calibration_error(confidence, correct); fit_temperature(logits, target)
    occlude(model, data, *, budgets=None, policies=(), judges=(), split=None, limit=None, batch_size=32, workers=0, device="auto",
            precision="32", seed=0, out=None, on_progress=None) -> Occlusion     # out: folder for occlusion.json and occlusion.png
    faithful(model, data, *, locations=None, attention=None, cam=None, judges=(), split=None, limit=None, batch_size=32, workers=0,
             device="auto", precision="32", seed=0, out=None, on_progress=None) -> Faithfulness
                                       # out: folder for faithfulness.json and faithfulness.png
    stop_early(model, data, budgets, *, locations=None, at_once=1, split=None, batch_size=8, ...) -> EarlyExit
                                       # solve(...): thresholds that spend a wanted mean cost; spend(...): what they give
    table(name, runs="runs") -> Tables     # published tables beside what runs have reached
    coverage(boxes, sizes) -> share of each image inside the union of its boxes; diversity(boxes, sizes); chosen_boxes(glimpses, images)
    Comparison: .points, .errors, .about, .table(wide=False), .as_dict(), .write(folder)
    Occlusion: .points, .errors, .about, .table(wide=False), .as_dict(), .write(folder)
    Faithfulness: .curves, .pointing, .found, .errors, .about, .table(wide=False), .as_dict(), .write(folder)
    Evaluation: .points, .dense, .errors, .about, .table(wide=False) (for rich), .as_dict(), .write(folder)

Example:
    >>> Plan((2, 1), "random")
    Plan(locations=(2, 1), policy='random')
"""

from foveal.evaluation.accuracy import Plan, judge, wilson
from foveal.evaluation.calibration import Said, expected_calibration_error, fit_temperature, said
from foveal.evaluation.compare import Comparison, Standing, compare, first_run, paired_interval, pareto
from foveal.evaluation.cost import Cost, Measure, Measured, Timed, Trial, best_batch, count, measure, measure_budgets, measure_in_turn
from foveal.evaluation.coverage import chosen_boxes, coverage, diversity
from foveal.evaluation.early_exit import EarlyExit, Spent, solve, spend, stop_early
from foveal.evaluation.evaluation import DenseCost, Evaluation, Point, evaluate
from foveal.evaluation.faithfulness import Curve, Faithfulness, Found, Hits, faithful
from foveal.evaluation.occlusion import Occlusion, Verdict, occlude
from foveal.evaluation.tables import Tables, table

__all__ = [
    "Comparison", "Cost", "Curve", "DenseCost", "EarlyExit", "Evaluation", "Faithfulness", "Found", "Hits", "Measure", "Measured",
    "Occlusion", "Plan", "Point", "Said", "Spent", "Standing", "Tables", "Timed", "Trial", "Verdict", "best_batch", "chosen_boxes",
    "compare", "count", "coverage", "diversity", "evaluate", "expected_calibration_error", "faithful", "first_run", "fit_temperature",
    "judge", "measure", "measure_budgets", "measure_in_turn", "occlude", "paired_interval", "pareto", "said", "solve", "spend",
    "stop_early", "table", "wilson",
]  # fmt: skip
