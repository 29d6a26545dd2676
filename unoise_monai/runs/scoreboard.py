"""Every method over all cases: means, intervals, ranks; as tables and pictures."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
COST = ("seconds", "forward_passes", "backward_passes", "peak_gb")
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
    """One row a method, the best overall first and the controls last; a `ValueError` where there is no result."""
    if not results:
        raise ValueError("results must be at least one, got none")
    scores = _intervals(results, lambda result: result.get("scores", {}))
    areas = _intervals(results, further_areas)
    ranks = _ranks(scores)
    counted = _counted(scores)
    rows = []
    for method in scores:
        own = [result for result in results if result["method"] == method]
        done = [result for result in own if "failed" not in result]
        rows.append(
            MethodRow(
                method=method,
                cases=len(done),
                failed=len(own) - len(done),
                scores=scores[method],
                areas=areas[method],
                ranks=ranks[method],
                overall=_mean(ranks[method].get(score) for score in counted),
                **{name: _mean(result.get(name) for result in done) for name in COST},
            )
        )
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.overall) else row.overall)


def further_areas(result: Mapping[str, Any]) -> dict[str, float]:
    """The areas under one map's curves of all measures but the first, Dice, whose area is among the scores."""
    areas: dict[str, float] = {}
    for operator, modes in result.get("curves", {}).items():
        for mode, curve in modes.items():
            share = torch.tensor(curve["share"], dtype=torch.float64)
            for measure in _measures(curve)[1:]:
                score = torch.from_numpy(_values(curve[measure]))[:, None]
                areas[f"{mode}_{operator}_{measure}"] = VisibilityCurve(share, share, score).area
    return areas


def _measures(curve: Mapping[str, Any]) -> list[str]:
    return [name for name in curve if name != "share"]


def _values(numbers: Any) -> NDArray[np.float64]:
    """None, where a case has no foreground to find, becomes NaN."""
    return np.array(numbers, dtype=np.float64)


def _intervals(
    results: Sequence[Mapping[str, Any]], values: Callable[[Mapping[str, Any]], Mapping[str, float]]
) -> dict[str, dict[str, Interval]]:
    """By method and column, in the order of the results; of a failed one no value counts, whatever it had got to."""
    tables = [(result["method"], {} if "failed" in result else values(result)) for result in results]
    columns = dict.fromkeys(column for _, table in tables for column in table)
    return {
        method: {
            column: bootstrap_mean([table.get(column, math.nan) for own, table in tables if own == method])
            for column in columns
        }
        for method in dict.fromkeys(method for method, _ in tables)
    }


def _mean(values: Iterable[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else math.nan


def _counted(scores: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """The scores of faithfulness, of several that are the same in every method only the first."""

    def same(one: str, other: str) -> bool:
        differences = [abs(found[one].mean - found[other].mean) for found in scores.values()]
        return all(difference <= SAME or math.isnan(difference) for difference in differences)

    counted: list[str] = []
    for column in next(iter(scores.values())):
        found = direction(column)
        if found and found.score.faithfulness and not any(same(column, other) for other in counted):
            counted.append(column)
    return counted


def _ranks(scores: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, float]]:
    """By method and score, see `MethodRow`; a mean that is NaN has no rank."""
    ranks: dict[str, dict[str, float]] = {method: {} for method in scores}
    for column in next(iter(scores.values())):
        found = direction(column)
        means = {method: own[column].mean for method, own in scores.items() if method not in CONTROLS}
        means = {method: mean for method, mean in means.items() if not math.isnan(mean)}
        if found and means:
            order = rankdata([mean if found.better == "low" else -mean for mean in means.values()])
            for method, rank in zip(means, order.tolist(), strict=True):
                ranks[method][column] = rank
    return ranks


def csv_table(rows: Sequence[MethodRow]) -> str:
    """One row a method: counts, cost, each score's mean, 95% interval and rank, and without rank each further area."""
    table = []
    for row in rows:
        cells: dict[str, Any] = {name: getattr(row, name) for name in ("method", "cases", "failed")}
        cells |= {"overall_rank": row.overall, **{name: getattr(row, name) for name in COST}}
        for name, found in {**row.scores, **row.areas}.items():
            cells |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
            if name in row.scores:
                cells[f"{name}_rank"] = row.ranks.get(name, math.nan)
        table.append({name: _short(each) if isinstance(each, float) else each for name, each in cells.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
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
        passes = 0 if math.isnan(row.forward_passes) else f"{row.forward_passes:.0f} + {row.backward_passes:.0f}"
        cells = [row.method, _short(row.overall, ".1f", "-"), _short(row.seconds, ".2f", "-"), f"{passes}"]
        cells += [_short(row.peak_gb, ".2f", "-"), *(_cell(row.scores[name], cohort) for name in scores)]
        lines.append(f"| {' | '.join(cells)} |")
    unchanged = [row.method for row in rows if "unchanged" in scores and row.scores["unchanged"].mean > 0]
    notes = {
        "Unchanged by random weights": unchanged,
        "Constant maps": sorted({result["method"] for result in results if result.get("constant")}),
        "Not ranked": [name for name in scores if direction(name) is None],
    }
    for title, names in notes.items():
        if names:
            lines += ["", f"{title}: {', '.join(names)}"]
    if failed := [result for result in results if "failed" in result]:
        lines += ["", "Failed:", ""]
        lines += [f"- {result['method']} on {result['case']}: {result['failed']}" for result in failed]
    return "\n".join(lines) + "\n"


def _cell(found: Interval, cohort: int) -> str:
    if math.isnan(found.mean):
        return "-"
    bounds = "" if math.isnan(found.low) else f" ({found.low:.3f}-{found.high:.3f})"
    cases = "" if found.count == cohort else f", {found.count} of {cohort}"
    return f"{found.mean:.3f}{bounds}{cases}"


def _short(value: float, form: str = ".6g", missing: str = "") -> str:
    return missing if math.isnan(value) else f"{value:{form}}"


def write_scoreboard(results: Sequence[Mapping[str, Any]], output_dir: str | Path) -> list[MethodRow]:
    """Write ``scoreboard.csv`` and ``.md``, the curves of each mode and operator, and rank against cost.

    Takes what a `Comparison` wrote for each case and method, and gives the rows of the table.

    Raises:
        ValueError: when there is no result.
    """
    folder = Path(output_dir)
    rows = method_rows(results)
    for file, text in (("scoreboard.csv", csv_table(rows)), ("scoreboard.md", markdown_table(rows, results))):
        with atomic_path(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    every = [curve for result in results for modes in result.get("curves", {}).values() for curve in modes.values()]
    measure = _measures(every[0])[0] if every else ""
    name = {"dice": "Dice", "iou": "IoU"}.get(measure, measure.replace("_", " "))
    for operator, mode in operators(results):
        if curves := mean_curves(results, [row.method for row in rows], operator, mode):
            picture = plot_visibility(curves, f"{mode}, hidden by {operator}", measure=name)
            save_png(picture, folder / f"curves_{mode}_{operator}.png")
    costs = {row.method: (row.seconds, row.overall) for row in rows if math.isfinite(row.overall) and row.seconds > 0}
    if costs:
        save_png(plot_costs(costs, "mean rank of faithfulness, 1 is best"), folder / "cost.png")
    return rows


def operators(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What voxels were hidden by, and how, in the order of the results."""
    curves = [result.get("curves", {}).items() for result in results]
    return list(dict.fromkeys((operator, mode) for found in curves for operator, modes in found for mode in modes))


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
            scores = _values([curve[_measures(curve)[0]] for curve in found])
            there = scores[np.isfinite(scores).all(axis=1)]
            if len(there):
                curves[method] = (np.mean([curve["share"] for curve in found], axis=0), there.mean(axis=0))
    return curves
