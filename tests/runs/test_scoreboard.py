"""Means, ranks and failures of every method, by hand; the tables that hold them, and the curves that are drawn."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unoise_monai.runs import scoreboard
from unoise_monai.runs.scoreboard import (
    csv_table,
    markdown_table,
    mean_curves,
    method_rows,
    operators,
    write_scoreboard,
)

SHIPPED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "scoreboard_hippocampus_mr_unoise.csv"
COST = {"seconds": 0.25, "forward_passes": 1.5, "backward_passes": 1.0}


def result(method: str, case: str = "a", curves: dict[str, Any] | None = None, **scores: float) -> dict[str, Any]:
    return {"method": method, "case": case, "scores": scores, "curves": curves or {}, **COST}


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
    assert rows[0].seconds == 0.25
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
        return result(method, case, {"zero": {"insertion": curve, "deletion": curve}}, insertion_zero=area)

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


TABLE = [
    *(result("saliency", case, insertion_zero=value, unchanged=1.0) for case, value in (("a", 0.5), ("b", 0.7))),
    {"method": "lime", "case": "a", "failed": "ValueError: no supervoxel"},
]


def test_csv_holds_means_intervals_and_ranks() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(method_rows(TABLE)))))
    assert [row["method"] for row in rows] == ["saliency", "lime"]
    assert float(rows[0]["insertion_zero"]) == 0.6
    assert float(rows[0]["insertion_zero_low"]) >= 0.5
    assert float(rows[0]["insertion_zero_high"]) <= 0.7
    assert (rows[0]["insertion_zero_rank"], rows[0]["cases"], rows[0]["failed"]) == ("1", "2", "0")
    assert (rows[1]["insertion_zero"], rows[1]["failed"]) == ("", "1")


def test_csv_alone_holds_the_areas_of_further_measures() -> None:
    curve = {"share": [0.0, 1.0], "dice": [0.2, 0.8], "iou": [0.1, 0.7], "soft_dice": [0.3, 0.5]}
    results = [{**one, "curves": {"zero": {"insertion": curve}}} for one in TABLE[:2]] + TABLE[2:]
    rows = list(csv.DictReader(io.StringIO(csv_table(method_rows(results)))))
    names = ["insertion_zero_iou", "insertion_zero_soft_dice"]
    assert list(rows[0])[-6:] == [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    assert [float(rows[0][name]) for name in names] == [0.4, 0.4]
    assert rows[1]["insertion_zero_iou"] == ""
    assert markdown_table(method_rows(results), results) == markdown_table(method_rows(TABLE), TABLE)


def test_markdown_names_what_failed_and_what_did_not_change() -> None:
    text = markdown_table(method_rows(TABLE), TABLE)
    lines = text.splitlines()
    assert lines[0].startswith("| method | rank | seconds | passes | GB | insertion zero |")
    assert lines[2].startswith("| saliency | 1.0 | 0.25 | 2 + 1 | - | 0.600 (0.500-0.700) |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "- lime on a: ValueError: no supervoxel" in lines
    assert "Unchanged by random weights: saliency" in lines


def test_means_over_fewer_cases_than_there_are_say_so() -> None:
    third = {**TABLE[0], "case": "c", "scores": {"insertion_zero": 0.9}}
    lines = markdown_table(method_rows([*TABLE, third]), [*TABLE, third]).splitlines()
    assert lines[2].endswith("| 0.700 (0.500-0.900) | 1.000 (1.000-1.000), 2 of 3 |")


def test_a_score_whose_class_is_not_imported_is_shown_and_not_ranked() -> None:
    results = [{**one, "scores": {**one["scores"], "unheard_of": 0.5}} for one in TABLE[:2]]
    rows = method_rows(results)
    assert rows[0].scores["unheard_of"].mean == 0.5
    assert "unheard_of" not in rows[0].ranks
    assert "Not ranked: unheard_of" in markdown_table(rows, results).splitlines()


def drawn(case: str, dice: list[float | None]) -> dict[str, Any]:
    curve = {"share": [0.0, 0.5, 1.0], "dice": dice, "iou": [0.0, 0.0, 0.0]}
    curves = {"zero": {"insertion": curve, "deletion": curve}, "blur": {"insertion": curve}}
    return result("saliency", case, curves, insertion_zero=0.5)


RESULTS = [
    drawn("a", [0.0, 0.4, 0.8]),
    drawn("b", [0.2, 0.6, 1.0]),
    drawn("empty", [None, None, None]),
    {"method": "saliency", "case": "c", "failed": "ValueError: no foreground"},
]


def test_curves_are_means_of_dice_over_the_cases_that_have_it() -> None:
    curves = mean_curves(RESULTS, ["saliency", "rise"], "zero", "insertion")
    assert list(curves) == ["saliency"]
    np.testing.assert_allclose(curves["saliency"][0], [0, 0.5, 1])
    np.testing.assert_allclose(curves["saliency"][1], [0.1, 0.5, 0.9])


def test_curves_of_a_failed_result_do_not_count() -> None:
    half = {**drawn("d", [1.0, 1.0, 1.0]), "failed": "OSError: no space left"}
    np.testing.assert_allclose(mean_curves([*RESULTS, half], ["saliency"], "zero", "insertion")["saliency"][1][1], 0.5)


def test_all_is_written_and_the_axis_names_the_first_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    draw = scoreboard.plot_visibility
    monkeypatch.setattr(scoreboard, "plot_visibility", lambda *given, measure: asked.append(measure) or draw(*given))
    assert [row.method for row in write_scoreboard(RESULTS, tmp_path)] == ["saliency"]
    curves = {f"curves_{name}.png" for name in ("insertion_zero", "deletion_zero", "insertion_blur")}
    assert {path.name for path in tmp_path.iterdir()} == {"scoreboard.csv", "scoreboard.md", "cost.png", *curves}
    other = [{**one, "curves": {"zero": {"insertion": {"share": [0, 1], "soft_dice": [0, 1]}}}} for one in RESULTS[:1]]
    write_scoreboard(other, tmp_path)
    assert asked == ["Dice", "Dice", "Dice", "soft dice"]


def test_operators_in_the_order_of_the_results() -> None:
    assert operators(RESULTS) == [("zero", "insertion"), ("zero", "deletion"), ("blur", "insertion")]


def test_a_comparison_in_which_all_failed_has_a_table(tmp_path: Path) -> None:
    write_scoreboard(RESULTS[-1:], tmp_path)
    assert "no foreground" in (tmp_path / "scoreboard.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="results must be at least one, got none"):
        write_scoreboard([], tmp_path)
