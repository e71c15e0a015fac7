"""Classify large images by looking where it matters.

Names below are imported when first used, so that ``import foveal`` and ``foveal --help`` take a moment and not seconds.

Example:
    >>> import foveal, torch
    >>> model = foveal.create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(2,))
    >>> looked = foveal.classify(model, torch.rand(3, 96, 128))
    >>> len(looked.glimpses), looked.probabilities.shape
    (3, torch.Size([3]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveal.importing import fast_imports

__version__ = "0.1.0"

_WHERE = {
    "FovealError": "foveal.errors",
    "Classification": "foveal.classification",
    "Glimpse": "foveal.classification",
    "POLICIES": "foveal.policies",
    "Policy": "foveal.policies",
    "open_image": "foveal.images",
    "OBJECTIVES": "foveal.objectives",
    "MODELS": "foveal.registry",
    "GlimpseClassifier": "foveal.glimpse.base",
    "create_model": "foveal.models",
    "create_classifier": "foveal.models",
    "list_models": "foveal.models",
    "Run": "foveal.runs",
    "load": "foveal.runs",
    "DATA_SETS": "foveal.data",
    "DataModule": "foveal.data",
    "get_data": "foveal.data",
    "fit": "foveal.training",
    "Training": "foveal.training",
    "Optimiser": "foveal.training",
    "Predictor": "foveal.prediction",
    "classify": "foveal.prediction",
    "predict": "foveal.prediction",
    "embed": "foveal.embedding",
    "count_cost": "foveal.prediction",
    "Setting": "foveal.evaluation",
    "evaluate": "foveal.evaluation",
    "compare": "foveal.evaluation",
    "fit_threshold": "foveal.evaluation",
    "occlude": "foveal.evaluation",
    "evaluate_faithfulness": "foveal.evaluation",
    "evaluate_early_exit": "foveal.evaluation",
    "paper_table": "foveal.evaluation",
    "visible": "foveal.evaluation",
    "show": "foveal.explain",
    "report": "foveal.explain",
    "push": "foveal.card",
    "FitConfig": "foveal.recipes.fit_config",
    "fit_config": "foveal.recipes.fit_config",
}
"""Module of each public name."""

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604

if TYPE_CHECKING:
    from foveal.card import push
    from foveal.classification import Classification, Glimpse
    from foveal.data import DATA_SETS, DataModule, get_data
    from foveal.embedding import embed
    from foveal.errors import FovealError
    from foveal.evaluation import (
        Setting,
        compare,
        evaluate,
        evaluate_early_exit,
        evaluate_faithfulness,
        fit_threshold,
        occlude,
        paper_table,
        visible,
    )
    from foveal.explain import report, show
    from foveal.glimpse.base import GlimpseClassifier
    from foveal.images import open_image
    from foveal.models import create_classifier, create_model, list_models
    from foveal.objectives import OBJECTIVES
    from foveal.policies import POLICIES, Policy
    from foveal.prediction import Predictor, classify, count_cost, predict
    from foveal.recipes.fit_config import FitConfig, fit_config
    from foveal.registry import MODELS
    from foveal.runs import Run, load
    from foveal.training import Optimiser, Training, fit


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'foveal' has no attribute '{name}'")
    with fast_imports():
        value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
