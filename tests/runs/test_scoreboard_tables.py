"""The tables hold the rows, and list what failed."""

from __future__ import annotations

import csv
import io

from unoise_monai.runs.scoreboard import csv_table, markdown_table, method_rows

RESULTS = [
    {
        "method": "saliency",
        "case": case,
        "scores": {"insertion_zero": value, "unchanged": 1.0},
        "seconds": 0.25,
        "forward_passes": 1.5,
        "backward_passes": 1.0,
        "constant": False,
    }
    for case, value in (("a", 0.5), ("b", 0.7))
] + [{"method": "lime", "case": "a", "failed": "ValueError: no supervoxel"}]


def test_csv_holds_means_intervals_and_ranks() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(method_rows(RESULTS)))))
    assert [row["method"] for row in rows] == ["saliency", "lime"]
    assert float(rows[0]["insertion_zero"]) == 0.6
    assert float(rows[0]["insertion_zero_low"]) >= 0.5
    assert float(rows[0]["insertion_zero_high"]) <= 0.7
    assert (rows[0]["insertion_zero_rank"], rows[0]["cases"], rows[0]["failed"]) == ("1", "2", "0")
    assert (rows[1]["insertion_zero"], rows[1]["failed"]) == ("", "1")


def test_csv_alone_holds_the_areas_of_further_measures() -> None:
    curve = {"share": [0.0, 1.0], "dice": [0.2, 0.8], "iou": [0.1, 0.7], "soft_dice": [0.3, 0.5]}
    results = [{**one, "curves": {"zero": {"insertion": curve}}} for one in RESULTS[:2]] + RESULTS[2:]
    rows = list(csv.DictReader(io.StringIO(csv_table(method_rows(results)))))
    names = ["insertion_zero_iou", "insertion_zero_soft_dice"]
    assert list(rows[0])[-6:] == [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    assert [float(rows[0][name]) for name in names] == [0.4, 0.4]
    assert rows[1]["insertion_zero_iou"] == ""
    assert markdown_table(method_rows(results), results) == markdown_table(method_rows(RESULTS), RESULTS)


def test_markdown_names_what_failed_and_what_did_not_change() -> None:
    text = markdown_table(method_rows(RESULTS), RESULTS)
    lines = text.splitlines()
    assert lines[0].startswith("| method | rank | seconds | passes | GB | insertion zero |")
    assert lines[2].startswith("| saliency | 1.0 | 0.25 | 2 + 1 | - | 0.600 (0.500-0.700) |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "- lime on a: ValueError: no supervoxel" in lines
    assert "Unchanged by random weights: saliency" in lines


def test_means_over_fewer_cases_than_there_are_say_so() -> None:
    third = {**RESULTS[0], "case": "c", "scores": {"insertion_zero": 0.9}}
    lines = markdown_table(method_rows([*RESULTS, third]), [*RESULTS, third]).splitlines()
    assert lines[2].endswith("| 0.700 (0.500-0.900) | 1.000 (1.000-1.000), 2 of 3 |")


def test_a_score_whose_class_is_not_imported_is_shown_and_not_ranked() -> None:
    results = [{**one, "scores": {**one["scores"], "unheard_of": 0.5}} for one in RESULTS[:2]]
    rows = method_rows(results)
    assert rows[0].scores["unheard_of"].mean == 0.5
    assert "unheard_of" not in rows[0].ranks
    assert "Not ranked: unheard_of" in markdown_table(rows, results).splitlines()
