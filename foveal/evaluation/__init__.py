"""Accuracy against cost, counted and measured, at every budget.

evaluate(model, data=None, *, budgets=None, against=(), split="test", batch_size=32, workers=0, device="auto", precision="32",
         seed=0, measured=True, out=None, on_progress=None) -> Evaluation
    model: a classifier or a run folder; data: a DataModule, or None for the data that the run was trained on;
    against: run folders of other (dense) models; out: folder for evaluation.json and tradeoff.png;
    on_progress(done, total) counts batches
Evaluation.table() -> rich table; Evaluation.as_dict(); Evaluation.write(folder)
foveal.evaluation.cost: count(model, image_size, locations=None) -> Cost; measure(...)
"""
