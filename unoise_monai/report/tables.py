"""The scoreboard as CSV, with everything, and as Markdown, to be read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from unoise_monai.metrics.bootstrap import Interval
from unoise_monai.report.rows import MethodRow

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

    Means over fewer cases than there are say of how many.
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
    for title, names in (("Unchanged by random weights", unchanged), ("Constant maps", constant)):
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
