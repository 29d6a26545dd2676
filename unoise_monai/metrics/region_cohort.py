"""How much importance lies in each organ on average over cases, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter

from unoise_monai.checks import check_choice
from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.regions import ORDERS, RegionRow, sorted_rows


def regions_over_cases(
    cases: Sequence[Sequence[RegionRow]],
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    order: str = "ratio",
) -> list[RegionRow]:
    """The mean over cases of each region's figures, with intervals over cases, the region that matters most first.

    A case without the region, or whose map is 0 everywhere, is left out of that region's means and counted as missing.
    Densities average only where all maps are on one scale, as those of a noise model are.

    Args:
        cases: the rows of `region_importance`, of each case.
        groups: the patient of each case, as in `bootstrap_mean`, like ``level``, ``draws`` and ``seed``.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the draws.
        order: by what the rows are sorted, ``"ratio"`` or ``"importance_share"``, NaN last.

    Raises:
        ValueError: when there is no case, or ``order`` is unknown, or as `bootstrap_mean` does.
    """
    check_choice("order", order, ORDERS)
    if not cases:
        raise ValueError("cases must be at least one, got none")
    tables = [{row.name: row for row in rows} for rows in cases]
    result = []
    for name in dict.fromkeys(name for table in tables for name in table):
        rows = [table.get(name) for table in tables]
        there = [row for row in rows if row is not None]

        def mean(figure: Callable[[RegionRow], Interval], rows: list[RegionRow | None] = rows) -> Interval:
            values = [math.nan if row is None else figure(row).mean for row in rows]
            return bootstrap_mean(values, level, draws, seed, groups)

        result.append(
            RegionRow(
                name,
                volume_share=sum(row.volume_share for row in there) / len(there),
                volume_ml=sum(row.volume_ml for row in there) / len(there),
                importance_share=mean(attrgetter("importance_share")),
                ratio=mean(attrgetter("ratio")),
                density=mean(attrgetter("density")),
                density_per_ml=mean(attrgetter("density_per_ml")),
            )
        )
    return sorted_rows(result, order)
