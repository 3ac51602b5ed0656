"""Figures from samples: medians, their spread, ratios within a round, and growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """`low` and `high` are quartiles, or the bounds of the median's 95 % interval."""

    median: float
    low: float
    high: float
    count: int


def single(value: float) -> Spread:
    return Spread(value, value, value, 1)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def quartiles(values: Sequence[float]) -> Spread:
    low, median, high = (quantile(values, share) for share in (0.25, 0.5, 0.75))
    return Spread(median, low, high, len(values))


def interval(values: Sequence[float]) -> Spread:
    """The median with its 95 % interval, by order statistics: these assume no distribution."""
    ordered = sorted(values)
    count = len(ordered)
    below = max(0, int((count - 1.96 * count**0.5) / 2))
    return Spread(quantile(ordered, 0.5), ordered[below], ordered[count - 1 - below], count)


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Of samples taken in turn: each is divided by its own round's baseline, so drift cancels."""
    return interval([value / base for value, base in zip(values, baseline)])


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least squares."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    common = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys))
    return common / sum((x - mean_x) ** 2 for x in xs)


def growth(xs: Sequence[float], rounds: Sequence[Sequence[float]]) -> Spread:
    """What one more of x costs: a slope for each round, and their median's interval."""
    return interval([slope(xs, ys) for ys in rounds])
