"""Figures from samples: medians, how far they spread, ratios within a round, and what grows with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """`low` and `high` are quartiles, or the bounds of a 95 % interval of the median, as the table's head says."""

    median: float
    low: float
    high: float
    count: int


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def quartiles(values: Sequence[float]) -> Spread:
    return Spread(quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), len(values))


def interval(values: Sequence[float]) -> Spread:
    """The median with its 95 % interval: order statistics, so nothing is assumed of how the noise is distributed."""
    ordered = sorted(values)
    count = len(ordered)
    below = max(0, int((count - 1.96 * count**0.5) / 2))
    return Spread(quantile(ordered, 0.5), ordered[below], ordered[count - 1 - below], count)


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Of samples that were taken in turn: each is held against the baseline of its own round, so slow drift cancels."""
    return interval([value / base for value, base in zip(values, baseline)])


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least squares."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)


def growth(xs: Sequence[float], rounds: Sequence[Sequence[float]]) -> Spread:
    """What one more of x costs: a slope for each round, and the interval of their median."""
    return interval([slope(xs, ys) for ys in rounds])
