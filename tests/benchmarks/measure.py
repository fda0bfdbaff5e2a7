# SPDX-License-Identifier: MIT
"""Comparing two ways to do the same work, on a machine that does other things too.

Rounds are short and alternate, ours first in one and last in the next, so that what disturbs
the machine disturbs both; what counts is the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass
class Comparison:
    """Both functions do the same amount of work and return what one piece of it took, in ns."""

    name: str
    limit: float
    ours: Callable[[], float]
    raw: Callable[[], float]


@dataclass
class Line:
    """A line of the table: a ratio to plain C, or without ``raw`` our own time in ns."""

    name: str
    limit: float
    ours: float
    raw: float | None
    value: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def compare(comparison: Comparison, rounds: int) -> Line:
    ours: list[float] = []
    raw: list[float] = []
    comparison.ours(), comparison.raw()  # caches, pages, timers
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i % 2:
                raw.append(comparison.raw())
            ours.append(comparison.ours())
            if not i % 2:
                raw.append(comparison.raw())
    finally:
        gc.enable()
    ratio = median(a / b for a, b in zip(ours, raw, strict=True))
    return Line(comparison.name, comparison.limit, median(ours), median(raw), ratio)
