"""What a scoreboard writes, and the curves that it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unoise_monai.runs import scoreboard
from unoise_monai.runs.scoreboard import mean_curves, operators, write_scoreboard


def result(method: str, case: str, dice: list[float | None]) -> dict[str, Any]:
    curve = {"share": [0.0, 0.5, 1.0], "dice": dice, "iou": [0.0, 0.0, 0.0]}
    return {
        "method": method,
        "case": case,
        "curves": {"zero": {"insertion": curve, "deletion": curve}, "blur": {"insertion": curve}},
        "scores": {"insertion_zero": 0.5},
        "seconds": 1.5,
        "forward_passes": 1.0,
        "backward_passes": 0.0,
    }


RESULTS = [
    result("saliency", "a", [0.0, 0.4, 0.8]),
    result("saliency", "b", [0.2, 0.6, 1.0]),
    result("saliency", "empty", [None, None, None]),
    {"method": "saliency", "case": "c", "failed": "ValueError: no foreground"},
]


def test_curves_are_means_of_dice_over_the_cases_that_have_it() -> None:
    curves = mean_curves(RESULTS, ["saliency", "rise"], "zero", "insertion")
    assert list(curves) == ["saliency"]
    np.testing.assert_allclose(curves["saliency"][0], [0, 0.5, 1])
    np.testing.assert_allclose(curves["saliency"][1], [0.1, 0.5, 0.9])


def test_curves_of_a_failed_result_do_not_count() -> None:
    half = {**result("saliency", "d", [1.0, 1.0, 1.0]), "failed": "OSError: no space left"}
    np.testing.assert_allclose(mean_curves([*RESULTS, half], ["saliency"], "zero", "insertion")["saliency"][1][1], 0.5)


def test_the_axis_names_the_first_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    draw = scoreboard.plot_visibility
    monkeypatch.setattr(scoreboard, "plot_visibility", lambda *given, measure: asked.append(measure) or draw(*given))
    write_scoreboard(RESULTS, tmp_path)
    other = [{**one, "curves": {"zero": {"insertion": {"share": [0, 1], "soft_dice": [0, 1]}}}} for one in RESULTS[:1]]
    write_scoreboard(other, tmp_path)
    assert asked == ["Dice", "Dice", "Dice", "soft dice"]


def test_operators_in_the_order_of_the_results() -> None:
    assert operators(RESULTS) == [("zero", "insertion"), ("zero", "deletion"), ("blur", "insertion")]


def test_everything_is_written(tmp_path: Path) -> None:
    rows = write_scoreboard(RESULTS, tmp_path)
    assert [row.method for row in rows] == ["saliency"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "scoreboard.csv",
        "scoreboard.md",
        "curves_insertion_zero.png",
        "curves_deletion_zero.png",
        "curves_insertion_blur.png",
        "cost.png",
    }


def test_a_comparison_in_which_all_failed_has_a_table(tmp_path: Path) -> None:
    write_scoreboard(RESULTS[-1:], tmp_path)
    assert "no foreground" in (tmp_path / "scoreboard.md").read_text()
    with pytest.raises(ValueError, match="at least one"):
        write_scoreboard([], tmp_path)
