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
    "Classification": "foveal.classification",
    "Glimpse": "foveal.classification",
    "FovealError": "foveal.errors",
    "open_image": "foveal.images",
    "create_model": "foveal.models",
    "list_models": "foveal.models",
    "load": "foveal.runs",
    "classify": "foveal.prediction",
    "get_data": "foveal.data",
    "FitConfig": "foveal.recipes.config",
    "fit_config": "foveal.recipes.config",
    "Optimiser": "foveal.training",
    "Training": "foveal.training",
    "fit": "foveal.training",
    "predict": "foveal.prediction",
    "count_cost": "foveal.prediction",
    "evaluate": "foveal.evaluation",
    "show": "foveal.explain",
    "report": "foveal.explain",
}

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604

if TYPE_CHECKING:
    from foveal.classification import Classification, Glimpse
    from foveal.data import get_data
    from foveal.errors import FovealError
    from foveal.evaluation import evaluate
    from foveal.explain import report, show
    from foveal.images import open_image
    from foveal.models import create_model, list_models
    from foveal.prediction import classify, count_cost, predict
    from foveal.recipes.config import FitConfig, fit_config
    from foveal.runs import load
    from foveal.training import Optimiser, Training, fit


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'foveal' has no attribute '{name}'")
    with fast_imports():
        value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
