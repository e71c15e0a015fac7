"""Accuracy against cost, counted and measured, at every budget; and what is left of it where the looks are hidden.

    evaluate(model, data, *, budgets=None, against=None, split=None, batch_size=32, workers=0, device="auto", precision="32", seed=0,
             measured=True, seconds=0.5, out=None, on_progress=None, policies=()) -> Evaluation
                                       # out: folder for evaluation.json and tradeoff.png
    occlude(model, data, *, budgets=None, policies=(), judges=(), split=None, limit=None, batch_size=32, workers=0, device="auto",
            precision="32", seed=0, out=None, on_progress=None) -> Occlusion     # out: folder for occlusion.json and occlusion.png
    faithful(model, data, *, locations=None, attention=None, cam=None, judges=(), split=None, limit=None, batch_size=32, workers=0,
             device="auto", precision="32", seed=0, out=None, on_progress=None) -> Faithfulness
                                       # out: folder for faithfulness.json and faithfulness.png
    table(name, runs="runs") -> Tables     # published tables beside what runs have reached
    coverage(boxes, sizes) -> share of each image inside the union of its boxes; diversity(boxes, sizes); chosen_boxes(glimpses, images)
    Occlusion: .points, .errors, .about, .table(), .as_dict(), .write(folder)
    Faithfulness: .curves, .pointing, .errors, .about, .table(), .as_dict(), .write(folder)
    Evaluation: .points, .dense, .errors, .about, .table() (for rich), .as_dict(), .write(folder)

Example:
    >>> Plan((2, 1), "random")
    Plan(locations=(2, 1), policy='random')
"""

from foveal.evaluation.accuracy import Plan, judge, wilson
from foveal.evaluation.cost import Cost, Measured, best_batch, count, measure
from foveal.evaluation.coverage import chosen_boxes, coverage, diversity
from foveal.evaluation.evaluation import DenseCost, Evaluation, Point, evaluate
from foveal.evaluation.faithfulness import Curve, Faithfulness, Hits, faithful
from foveal.evaluation.occlusion import Occlusion, Verdict, occlude
from foveal.evaluation.tables import Tables, table

__all__ = [
    "Cost", "Curve", "DenseCost", "Evaluation", "Faithfulness", "Hits", "Measured", "Occlusion", "Plan", "Point", "Tables", "Verdict",
    "best_batch", "chosen_boxes", "count", "coverage", "diversity", "evaluate", "faithful", "judge", "measure", "occlude", "table",
    "wilson",
]  # fmt: skip
