"""Means, ranks and failures of every method, by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from unoise_monai.runs.scoreboard import method_rows

SHIPPED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "scoreboard_hippocampus_mr_unoise.csv"


def result(method: str, case: str = "a", **scores: float) -> dict[str, Any]:
    return {
        "method": method,
        "case": case,
        "scores": scores,
        "seconds": 2.0,
        "forward_passes": 1.0,
        "backward_passes": 1.0,
    }


def test_ranks_go_by_each_score_s_own_direction_and_ties_share() -> None:
    rows = method_rows(
        [
            result("good", insertion_zero=0.9, deletion_zero=0.1, sensitivity=0.5),
            result("equal", insertion_zero=0.9, deletion_zero=0.3, sensitivity=0.1),
            result("poor", insertion_zero=0.2, deletion_zero=0.8, sensitivity=0.2),
        ]
    )
    assert [row.method for row in rows] == ["good", "equal", "poor"]
    assert [dict(row.ranks) for row in rows] == [
        {"insertion_zero": 1.5, "deletion_zero": 1, "sensitivity": 3},
        {"insertion_zero": 1.5, "deletion_zero": 2, "sensitivity": 1},
        {"insertion_zero": 3, "deletion_zero": 3, "sensitivity": 2},
    ]
    # Robustness is no faithfulness: it has no part in the overall rank.
    assert [row.overall for row in rows] == [1.25, 1.75, 3]


def test_controls_come_last_and_take_no_rank() -> None:
    rows = method_rows([result("random", insertion_zero=0.99), result("saliency", insertion_zero=0.5)])
    assert [row.method for row in rows] == ["saliency", "random"]
    assert rows[0].ranks == {"insertion_zero": 1}
    assert rows[1].ranks == {}
    assert math.isnan(rows[1].overall)
    assert rows[1].scores["insertion_zero"].mean == 0.99


def test_a_failure_counts_and_leaves_the_means() -> None:
    failed = {"method": "rise", "case": "b", "failed": "MemoryError: too large"}
    rows = method_rows([result("rise", insertion_zero=0.4), failed, result("rise", "c", insertion_zero=0.6)])
    assert (rows[0].cases, rows[0].failed) == (2, 1)
    assert rows[0].scores["insertion_zero"].mean == pytest.approx(0.5)
    assert rows[0].scores["insertion_zero"].missing == 1
    assert rows[0].seconds == 2
    only = method_rows([failed])
    assert (only[0].cases, only[0].failed) == (0, 1)
    assert math.isnan(only[0].overall)


def test_scores_that_a_failed_result_had_got_to_do_not_count() -> None:
    half = {**result("rise", "b", insertion_zero=0.9, infidelity=0.1), "failed": "OSError: no space left"}
    half["curves"] = {"zero": {"insertion": {"share": [0.0, 1.0], "dice": [0.0, 1.0], "iou": [0.0, 1.0]}}}
    (row,) = method_rows([result("rise", insertion_zero=0.4), half])
    assert (row.scores["insertion_zero"].mean, row.scores["insertion_zero"].count) == (0.4, 1)
    assert set(row.scores) == {"insertion_zero"}
    assert not row.areas


def test_a_score_that_one_method_lacks_ranks_the_others() -> None:
    rows = method_rows([result("a", insertion_zero=0.4), result("b", insertion_zero=0.5, infidelity=0.3)])
    by_name = {row.method: row for row in rows}
    assert by_name["a"].ranks == {"insertion_zero": 2}
    assert by_name["b"].ranks == {"insertion_zero": 1, "infidelity": 1}


def test_scores_that_say_the_same_count_once() -> None:
    same = {"insertion_zero": 0.5, "insertion_mean": 0.501, "insertion_blur": 0.2}
    other = {"insertion_zero": 0.4, "insertion_mean": 0.4, "insertion_blur": 0.9}
    rows = {row.method: row for row in method_rows([result("a", **same), result("b", **other)])}
    # Counted twice, a's two first ranks would make it the better one.
    assert (rows["a"].overall, rows["b"].overall) == (1.5, 1.5)
    assert rows["a"].ranks["insertion_mean"] == 1


def test_areas_of_further_measures_are_means_without_ranks() -> None:
    def measured(method: str, case: str, dice: float, further: float | None) -> dict[str, Any]:
        curve = {"share": [0.0, 0.5, 1.0], "dice": [0.0, dice, 1.0], "surface_distance": [4.0, further, 0.0]}
        area = (0.5 * dice + 0.5 * (dice + 1)) / 2
        return {
            **result(method, case, insertion_zero=area),
            "curves": {"zero": {"insertion": curve, "deletion": curve}},
        }

    results = [measured("a", "1", 0.2, 2.0), measured("a", "2", 0.4, 4.0), measured("a", "3", 0.4, None)]
    # A method that failed everywhere has the same columns, without a value.
    rows = {row.method: row for row in method_rows([*results, {"method": "b", "case": "1", "failed": "x"}])}
    assert set(rows["a"].scores) == set(rows["a"].ranks) == {"insertion_zero"}
    assert list(rows["a"].areas) == ["insertion_zero_surface_distance", "deletion_zero_surface_distance"]
    found = rows["a"].areas["insertion_zero_surface_distance"]
    assert found.mean == pytest.approx(((3 + 1) / 2 + (4 + 2) / 2) / 2)
    assert (found.count, found.missing) == (2, 1)
    assert rows["b"].areas["insertion_zero_surface_distance"].count == 0


def test_the_shipped_ranks_follow_from_the_shipped_means() -> None:
    with SHIPPED.open() as file:
        table = list(csv.DictReader(file))
    scores = [name.removesuffix("_rank") for name in table[0] if name.endswith("_rank") and name != "overall_rank"]
    assert {"insertion_zero", "deletion_zero", "infidelity", "sensitivity", "unchanged"} <= set(scores)
    results = [result(row["method"], **{name: float(row[name]) for name in scores if row[name]}) for row in table]
    rows = {row.method: row for row in method_rows(results)}
    for shipped in table:
        row = rows[shipped["method"]]
        assert {name: f"{rank:g}" for name, rank in row.ranks.items()} == {
            name: shipped[f"{name}_rank"] for name in scores if shipped[f"{name}_rank"]
        }
        assert row.overall == pytest.approx(float(shipped["overall_rank"] or "nan"), rel=1e-5, nan_ok=True)


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="results must be at least one, got none"):
        method_rows([])
