"""Every method over all cases: means, intervals, ranks; as tables and pictures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from unoise_monai.atomic import atomic_path
from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.scores import direction
from unoise_monai.metrics.visibility import VisibilityCurve
from unoise_monai.render.canvas import save_png
from unoise_monai.render.curves import plot_costs, plot_visibility

CONTROLS = ("random", "intensity", "edges", "label_distance")
"""Rankings that ask no network: shown beside the methods, and not ranked among them."""
SAME = 0.005
"""Scores that differ by no more in any method count once in the overall rank: zero is a z-scored image's mean."""


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
    """For each score whose class is known, 1 the best; equal means share their mean rank. Empty for controls."""
    overall: float
    """Mean rank over the scores of faithfulness (`MapScore.faithfulness`); NaN for controls."""
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
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_method.setdefault(result["method"], []).append(result)
    scores = {name: [_scores(result) for result in found] for name, found in by_method.items()}
    areas = {name: [further_areas(result) for result in found] for name, found in by_method.items()}
    # Columns in the order in which the results come.
    columns = dict.fromkeys(name for result in results for name in _scores(result))
    further = dict.fromkeys(name for found in areas.values() for one in found for name in one)
    means = {name: _means(found, columns) for name, found in scores.items()}
    ranked = [name for name in by_method if name not in CONTROLS]
    ranks = {score: _ranks({name: means[name][score].mean for name in ranked}, score) for score in columns}
    counted = _counted(columns, means)
    rows = []
    for name, found in by_method.items():
        done = [result for result in found if "failed" not in result]
        own = {score: ranks[score][name] for score in columns if name in ranks[score]}
        rows.append(
            MethodRow(
                method=name,
                cases=len(done),
                failed=len(found) - len(done),
                scores=means[name],
                areas=_means(areas[name], further),
                ranks=own,
                overall=_mean([own.get(score) for score in counted]),
                seconds=_mean([result.get("seconds") for result in done]),
                forward_passes=_mean([result.get("forward_passes") for result in done]),
                backward_passes=_mean([result.get("backward_passes") for result in done]),
                peak_gb=_mean([result.get("peak_gb") for result in done]),
            )
        )
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


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else math.nan


def _means(tables: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, Interval]:
    return {name: bootstrap_mean([table.get(name, math.nan) for table in tables]) for name in names}


def _counted(scores: Iterable[str], means: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """The scores of faithfulness, of several that are the same in every method only the first."""

    def same(one: str, other: str) -> bool:
        pairs = [(found[one].mean, found[other].mean) for found in means.values()]
        return all(abs(first - second) <= SAME or math.isnan(first + second) for first, second in pairs)

    counted: list[str] = []
    for score in scores:
        found = direction(score)
        if found and found.score.faithfulness and not any(same(score, other) for other in counted):
            counted.append(score)
    return counted


def _ranks(means: Mapping[str, float], score: str) -> dict[str, float]:
    """1 for the best; equal values share their mean rank; NaN gets none, nor does a score whose class is not known."""
    found = direction(score)
    there = {name: value for name, value in means.items() if math.isfinite(value)}
    if found is None or not there:
        return {}
    ranks = rankdata([value if found.better == "low" else -value for value in there.values()])
    return dict(zip(there, ranks.tolist(), strict=True))


_NONE = Interval(math.nan, math.nan, math.nan, 0)


def csv_table(rows: Sequence[MethodRow]) -> str:
    """One row a method: counts, cost, and for each score the mean, its 95% interval and the rank.

    Last come the areas under the curves of the measures beside Dice, mean and interval, which have no rank.
    """
    text = io.StringIO()
    head = ["method", "cases", "failed", "overall_rank", "seconds", "forward_passes", "backward_passes", "peak_gb"]
    columns = [f"{name}{part}" for name in rows[0].scores for part in ("", "_low", "_high", "_rank")]
    columns += [f"{name}{part}" for name in rows[0].areas for part in ("", "_low", "_high")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head + columns)
    for row in rows:
        values: list[object] = [row.method, row.cases, row.failed]
        values += [_number(x) for x in (row.overall, row.seconds, row.forward_passes, row.backward_passes, row.peak_gb)]
        for name in rows[0].scores:
            found = row.scores[name]
            values += [_number(x) for x in (found.mean, found.low, found.high, row.ranks.get(name, math.nan))]
        for name in rows[0].areas:
            values += [_number(x) for x in (row.areas[name].mean, row.areas[name].low, row.areas[name].high)]
        writer.writerow(values)
    return text.getvalue()


def markdown_table(rows: Sequence[MethodRow], results: Sequence[Mapping[str, Any]]) -> str:
    """The best method first: overall rank, then each score's mean and 95% interval; what failed, below.

    A mean over fewer cases than there are is followed by their number.
    """
    scores = list(rows[0].scores)
    cohort = len({result["case"] for result in results})
    head = ["method", "rank", "seconds", "passes", "GB", *(name.replace("_", " ") for name in scores)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row.method, _short(row.overall, 1), _short(row.seconds, 2), passes(row), _short(row.peak_gb, 2)]
        cells += [_interval(row.scores[name], cohort) for name in scores]
        lines.append(f"| {' | '.join(cells)} |")
    failures = [
        f"- {result['method']} on {result['case']}: {result['failed']}" for result in results if "failed" in result
    ]
    unchanged = [row.method for row in rows if row.scores.get("unchanged", _NONE).mean > 0]
    constant = sorted({result["method"] for result in results if result.get("constant")})
    unknown = [name for name in scores if direction(name) is None]
    notes = (("Unchanged by random weights", unchanged), ("Constant maps", constant), ("Not ranked", unknown))
    for title, names in notes:
        if names:
            lines += ["", f"{title}: {', '.join(names)}"]
    if failures:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines) + "\n"


def passes(row: MethodRow) -> str:
    """Forward and backward passes of a map."""
    if math.isnan(row.forward_passes):
        return "0"
    return f"{row.forward_passes:.0f} + {row.backward_passes:.0f}"


def _interval(found: Interval, cohort: int) -> str:
    if math.isnan(found.mean):
        return "-"
    bounds = "" if math.isnan(found.low) else f" ({found.low:.3f}-{found.high:.3f})"
    cases = "" if found.count == cohort else f", {found.count} of {cohort}"
    return f"{found.mean:.3f}{bounds}{cases}"


def _short(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def write_scoreboard(results: Sequence[Mapping[str, Any]], output_dir: str | Path) -> list[MethodRow]:
    """Write ``scoreboard.csv`` and ``.md``, the curves of each mode and operator, and rank against cost.

    Args:
        results: what a `Comparison` wrote for each case and method.
        output_dir: where to.

    Returns:
        The rows of the table.

    Raises:
        ValueError: when there is no result.
    """
    folder = Path(output_dir)
    rows = method_rows(results)
    for name, text in (("scoreboard.csv", csv_table(rows)), ("scoreboard.md", markdown_table(rows, results))):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
    for operator, mode in operators(results):
        curves = mean_curves(results, [row.method for row in rows], operator, mode)
        if curves:
            picture = plot_visibility(curves, f"{mode}, hidden by {operator}", measure=first_measure(results))
            save_png(picture, folder / f"curves_{mode}_{operator}.png")
    costs = {row.method: (row.seconds, row.overall) for row in rows if math.isfinite(row.overall) and row.seconds > 0}
    if costs:
        save_png(plot_costs(costs, "mean rank of faithfulness, 1 is best"), folder / "cost.png")
    return rows


def operators(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What voxels were hidden by, and how, in the order of the results."""
    found = [
        (operator, mode) for result in results for operator, modes in result.get("curves", {}).items() for mode in modes
    ]
    return list(dict.fromkeys(found))


def first_measure(results: Sequence[Mapping[str, Any]]) -> str:
    """The name of the measure that is drawn and ranked, as an axis shows it."""
    curves = [curve for result in results for modes in result.get("curves", {}).values() for curve in modes.values()]
    name = next(name for name in curves[0] if name != "share")
    return {"dice": "Dice", "iou": "IoU"}.get(name, name.replace("_", " "))


def mean_curves(
    results: Sequence[Mapping[str, Any]], methods: Sequence[str], operator: str, mode: str
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Of each method the share visible and the mean over cases of the first measure, Dice by default."""
    curves = {}
    for method in methods:
        found = [
            result["curves"][operator][mode]
            for result in results
            if result["method"] == method and "failed" not in result and operator in result.get("curves", {})
        ]
        if found:
            measure = next(name for name in found[0] if name != "share")
            shares = np.mean([curve["share"] for curve in found], axis=0)
            # None, where a case has no foreground to find, becomes NaN.
            scores = np.array([curve[measure] for curve in found], dtype=np.float64)
            there = scores[np.isfinite(scores).all(axis=1)]
            if len(there):
                curves[method] = (shares, there.mean(axis=0))
    return curves
