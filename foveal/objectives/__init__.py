"""What is minimised: pure functions of rollouts.

Example:
    >>> TNetObjective(warm_up=0.2).plan(progress=0.1), TNetObjective(warm_up=0.2).plan(progress=0.5)
    (('random',), ('sampled',))
"""

from typing import Any

from foveal.objectives.objective import CrossEntropy, Objective
from foveal.objectives.rollout import Rollout
from foveal.objectives.tnet import ReferenceTNetObjective, TNetObjective

__all__ = ["OBJECTIVES", "CrossEntropy", "Objective", "ReferenceTNetObjective", "Rollout", "TNetObjective"]

OBJECTIVES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropy,
    "tnet": TNetObjective,
    "tnet.reference": ReferenceTNetObjective,
}
"""Objectives by the name that recipes call them by."""
