"""Every method over all cases: means with intervals, ranks for each score and overall."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.curve import VisibilityCurve

CONTROLS = ("random", "intensity", "edges", "label_distance")
"""Rankings that ask no network: shown beside the methods, and not ranked among them."""
LOWER_IS_BETTER = (
    "deletion",
    "infidelity",
    "sensitivity",
    "randomisation",
    "unchanged",
    "truth_top_distractor",
    "truth_top_irrelevant",
    "truth_top_outside",
)
"""Beginnings of the scores that are better when low."""
FAITHFULNESS = ("insertion", "deletion", "infidelity")
"""Beginnings of the scores whose ranks make the overall rank: they say whether a map is faithful to the network."""
SAME = 0.005
"""Two scores that differ by no more in any method say the same and count once: zero is the mean of a z-scored image."""


@dataclass(frozen=True)
class MethodRow:
    """One method over all cases."""

    method: str
    cases: int
    failed: int
    scores: Mapping[str, Interval]
    areas: Mapping[str, Interval]
    """Under the curves of the further measures, such as soft Dice, which are not ranked."""
    ranks: Mapping[str, float]
    """For each score, 1 the best; equal means share their mean rank. Empty for controls."""
    overall: float
    """Mean rank over the scores of faithfulness; NaN for controls."""
    seconds: float
    forward_passes: float
    backward_passes: float
    peak_gb: float
    """The most memory that a map took, 1e9 bytes; NaN where it was not measured."""


def method_rows(results: Sequence[Mapping[str, Any]]) -> list[MethodRow]:
    """One row a method, the best overall first and the controls last.

    Args:
        results: what a `Comparison` wrote for each case and method.

    Raises:
        ValueError: when there is no result.
    """
    if not results:
        raise ValueError("results must be at least one, got none")
    by_method = {
        name: [result for result in results if result["method"] == name]
        for name in dict.fromkeys(result["method"] for result in results)
    }
    scores = _names(_scores(result) for result in results)
    means = {name: _means([_scores(result) for result in found], scores) for name, found in by_method.items()}
    under = {name: [further_areas(result) for result in found] for name, found in by_method.items()}
    measured = _names(areas for found in under.values() for areas in found)
    ranked = [name for name in by_method if name not in CONTROLS]
    ranks = {score: _ranks({name: means[name][score].mean for name in ranked}, score) for score in scores}
    counted = _counted(scores, means)
    rows = [
        _row(
            name,
            found,
            means[name],
            _means(under[name], measured),
            counted,
            {score: ranks[score][name] for score in scores if name in ranks[score]},
        )
        for name, found in by_method.items()
    ]
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.overall) else row.overall)


def further_areas(result: Mapping[str, Any]) -> dict[str, float]:
    """The areas under one map's curves of all measures but the first, Dice, whose area is among the scores."""
    areas: dict[str, float] = {}
    if "failed" in result:
        return areas
    for operator, modes in result.get("curves", {}).items():
        for mode, curve in modes.items():
            share = torch.tensor(curve["share"], dtype=torch.float64)
            for measure in [name for name in curve if name != "share"][1:]:
                # None, where a case has no foreground to find, becomes NaN.
                values = torch.tensor(np.array(curve[measure], dtype=np.float64))
                areas[f"{mode}_{operator}_{measure}"] = VisibilityCurve(share, share, values[:, None]).area
    return areas


def _scores(result: Mapping[str, Any]) -> Mapping[str, float]:
    """Of a method that failed on the case none, whatever it had got to."""
    return {} if "failed" in result else result.get("scores", {})


def _names(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """All of several tables, in the order in which they come."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _means(tables: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Interval]:
    return {name: bootstrap_mean([table.get(name, math.nan) for table in tables]) for name in names}


def _counted(scores: Sequence[str], means: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """The scores of faithfulness, of several that say the same the first."""

    def same(one: str, other: str) -> bool:
        pairs = [(found[one].mean, found[other].mean) for found in means.values()]
        return all(abs(first - second) <= SAME or math.isnan(first + second) for first, second in pairs)

    counted: list[str] = []
    for score in scores:
        if score.startswith(FAITHFULNESS) and not any(same(score, other) for other in counted):
            counted.append(score)
    return counted


def _row(
    method: str,
    results: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Interval],
    areas: Mapping[str, Interval],
    counted: Sequence[str],
    ranks: Mapping[str, float],
) -> MethodRow:
    done = [result for result in results if "failed" not in result]
    faithful = [ranks[name] for name in counted if name in ranks]

    def mean(name: str) -> float:
        values = [result[name] for result in done if result.get(name) is not None]
        return float(np.mean(values)) if values else math.nan

    return MethodRow(
        method=method,
        cases=len(done),
        failed=len(results) - len(done),
        scores=scores,
        areas=areas,
        ranks=ranks,
        overall=float(np.mean(faithful)) if faithful else math.nan,
        seconds=mean("seconds"),
        forward_passes=mean("forward_passes"),
        backward_passes=mean("backward_passes"),
        peak_gb=mean("peak_gb"),
    )


def _ranks(means: Mapping[str, float], score: str) -> dict[str, float]:
    """1 for the best; equal values share their mean rank; NaN gets none."""
    there = {name: value for name, value in means.items() if math.isfinite(value)}
    towards = 1 if score.startswith(LOWER_IS_BETTER) else -1
    values = sorted(towards * value for value in there.values())
    return {
        name: (values.index(towards * value) + len(values) - values[::-1].index(towards * value) + 1) / 2
        for name, value in there.items()
    }
