"""The scoreboard of a comparison: tables, curves, and what each method costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.render.costs import plot_costs
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.png import save_png
from unoise_monai.report.rows import MethodRow, method_rows
from unoise_monai.report.tables import csv_table, markdown_table


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
