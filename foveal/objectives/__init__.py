"""Objectives: pure functions from rollouts to a loss.

Example:
    >>> TNetObjective(warm_up=0.2).plan(progress=0.1), TNetObjective(warm_up=0.2).plan(progress=0.5)
    (('whole',), ('sampled',))
"""

from foveal.objectives.objective import OBJECTIVES, CrossEntropy, Objective
from foveal.objectives.recurrent import RecurrentObjective
from foveal.objectives.rollout import Rollout
from foveal.objectives.saccader import SaccaderLocations, SaccaderObjective
from foveal.objectives.scan import ScanObjective
from foveal.objectives.tnet import ReferenceTNetObjective, TNetObjective

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "Objective",
    "RecurrentObjective",
    "ReferenceTNetObjective",
    "Rollout",
    "SaccaderLocations",
    "SaccaderObjective",
    "ScanObjective",
    "TNetObjective",
]
