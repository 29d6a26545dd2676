"""Percentile bootstrap intervals of means over cases; whole patients are drawn where cases belong together."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unoise_monai.checks import check_fraction

# Drawn numbers held at once: 64 MB, whatever the number of units is.
_BATCH = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float
    count: int
    """Values that the mean is of."""
    missing: int = 0
    """NaN values that were left out."""


def bootstrap_mean(
    values: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Interval:
    """The mean over cases and its percentile interval (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).

    Each draw takes as many cases as there are, with replacement. Cases of one patient are no independent evidence: with
    ``groups``, each draw takes whole patients, and its mean is that of all their cases. NaN values (a class that a case
    lacks) are left out first. With fewer than two cases or patients the bounds are NaN.

    Args:
        values: one number a case, ``(N,)``.
        level: of the interval, such as 0.95 for its bounds at 2.5% and 97.5% of the draws.
        draws: how many means are drawn.
        seed: of the draws; the same seed and number of cases draw the same cases.
        groups: the patient of each case, ``(N,)``; by default each case is its own.

    Raises:
        ValueError: when ``values`` is empty, not one-dimensional, or holds infinite numbers, or ``groups`` is not one
            for each value.
        ValueError: when ``level`` is not above 0 and at most 1, or ``draws`` is below 1.
    """
    cases = _numbers("values", values)
    if groups is not None and len(groups) != len(cases):
        raise ValueError(f"groups must be one for each of the {len(cases)} values, got {len(groups)}")
    numbers: dict[Hashable, int] = {}
    owners = range(len(cases)) if groups is None else groups
    unit = np.array([numbers.setdefault(group, len(numbers)) for group in owners])
    there = ~np.isnan(cases)
    # A patient without a value is no unit, or draws could come out empty.
    _, unit = np.unique(unit[there], return_inverse=True)
    sums = np.stack([np.bincount(unit, cases[there]), np.bincount(unit).astype(np.float64)], axis=1)
    drawn = resampled_sums(sums, draws, seed)
    low, high = bounds(drawn[:, 0], drawn[:, 1], level)
    if len(sums) < 2:
        low = high = math.nan
    mean = float(cases[there].mean()) if there.any() else math.nan
    return Interval(mean, low, high, int(there.sum()), int((~there).sum()))


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of ``first - second`` over the cases that have both, and its interval: cases are drawn as pairs.

    Args:
        first: one number a case, ``(N,)``.
        second: of the same cases, ``(N,)``.
        level: as in `bootstrap_mean`, like ``draws``, ``seed`` and ``groups``.
        draws: how many means are drawn.
        seed: of the draws.
        groups: the patient of each case.

    Raises:
        ValueError: when the two are not of one shape, or as `bootstrap_mean` does.
    """
    one, two = _numbers("first", first), _numbers("second", second)
    if one.shape != two.shape:
        raise ValueError(f"first and second must be of the same cases, got the shapes {one.shape} and {two.shape}")
    return bootstrap_mean(one - two, level, draws, seed, groups)


def resampled_sums(units: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Column sums over units drawn with replacement, ``(N, columns)`` to ``(draws, columns)``."""
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    rng, count = np.random.default_rng(seed), len(units)
    if count == 0:
        return np.zeros((draws, units.shape[1]))
    batch = max(1, _BATCH // count)
    parts = []
    for start in range(0, draws, batch):
        rows = min(batch, draws - start)
        chosen = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(times.astype(np.float64) @ units)
    return np.concatenate(parts)


def bounds(numerator: NDArray[np.float64], denominator: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The interval that holds the middle ``level`` of the ratios drawn; draws over a denominator of 0 are left out."""
    check_fraction("level", level)
    there = denominator != 0
    if not there.any():
        return math.nan, math.nan
    low, high = np.quantile(numerator[there] / denominator[there], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    cases = np.asarray(values, np.float64)
    if cases.ndim != 1 or cases.size == 0:
        raise ValueError(f"{name} must be one number a case, at least one, got an array of shape {cases.shape}")
    if np.isinf(cases).any():
        raise ValueError(f"{name} must be finite or NaN, got {int(np.isinf(cases).sum())} infinite of {cases.size}")
    return cases
