"""Training: one training step for every model, a run folder that can be resumed to the last bit.

Example:
    >>> Training(epochs=1).optimiser.lr
    0.001
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.importing import fast_imports
from foveal.training.config import Optimiser, Training

__all__ = ["Optimiser", "Learner", "Training", "TrainingSummary", "fit"]

if TYPE_CHECKING:
    from foveal.training.fitting import fit
    from foveal.training.learner import Learner
    from foveal.training.report import TrainingSummary


def __getattr__(name: str) -> Any:
    # Lightning takes a second to import; the command's help needs the configuration only.
    if name == "fit":
        with fast_imports():
            from foveal.training.fitting import fit

        return fit
    if name == "TrainingSummary":
        from foveal.training.report import TrainingSummary

        return TrainingSummary
    if name == "Learner":
        from foveal.training.learner import Learner

        return Learner
    raise AttributeError(f"module 'foveal.training' has no attribute '{name}'")
