"""Budgets as people type them: ``2,1`` is two looks in the first grid and one in each grid below, ``0..6`` a sweep.

Example:
    >>> parse_locations("0..2,1")
    [(), (1, 1), (2, 1)]
    >>> parse_budget("3")
    (3,)
"""

from __future__ import annotations

import re

from foveal.errors import ConfigError


def parse_locations(text: str) -> list[tuple[int, ...]]:
    """Budgets of ``K1,K2,...``, where the first may be a sweep ``A..B`` (both ends included).

    A level without looks ends the budget: ``0`` is the thumbnail only, ``()``.

    Raises:
        ConfigError: anything else.
    """
    first, *rest = (part.strip() for part in text.split(","))
    sweep = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", first)
    if sweep is None or not all(re.fullmatch(r"\d+", part) for part in rest):
        raise ConfigError(
            f"locations {text}: is no budget; write looks per level as 2,1, or a sweep of the first as 0..6 or 1..3,1"
        )
    start, stop = int(sweep[1]), int(sweep[2] or sweep[1])
    if stop < start:
        raise ConfigError(f"locations {text}: the sweep runs backwards; write {stop}..{start}")
    return [_until_zero((k, *map(int, rest))) for k in range(start, stop + 1)]


def parse_budget(text: str) -> tuple[int, ...]:
    """One budget.

    Raises:
        ConfigError: no budget, or a sweep.
    """
    budgets = parse_locations(text)
    if len(budgets) > 1:
        raise ConfigError(
            f"locations {text}: only evaluation sweeps over budgets; give one, say {format_budget(budgets[-1])}"
        )
    return budgets[0]


def format_budget(budget: tuple[int, ...]) -> str:
    """A budget as it is typed."""
    return ",".join(map(str, budget)) or "0"


def _until_zero(budget: tuple[int, ...]) -> tuple[int, ...]:
    return budget[: budget.index(0)] if 0 in budget else budget
