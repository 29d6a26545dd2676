"""A comparison writes every map, scores it, goes on where it stopped, and outlives a method that fails."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from unoise_monai import ExplainedSegmenter
from unoise_monai.attribution import registry
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.data import SegmentationTask
from unoise_monai.metrics.hiding import Hiding
from unoise_monai.report import Comparison, MapScorer, find_cases

SCORER = MapScorer(
    hidings={"zero": Hiding("zero")},
    shares=(0.0, 0.3, 1.0),
    measures=("dice",),
    infidelity_samples=4,
    sensitivity_samples=1,
    randomisation_steps=1,
)


def comparison(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, out: Path, **changes: Any
) -> Comparison:
    options: dict[str, Any] = {
        "cases": find_cases(cohort, choice=2),
        "methods": ["saliency", "unoise", "input_x_gradient", "random", "label_distance"],
        "output_dir": out,
        "scorer": SCORER,
        "robust_cases": 1,
        "precision": "fp32",
        "pictures": False,
        **changes,
    }
    return Comparison(segmenter, task, **options)


def test_every_case_and_method(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path
) -> None:
    run = comparison(segmenter, task, cohort, tmp_path, truth_dir=cohort / "truthTr", pictures=True)
    rows = {row.method: row for row in run.run()}
    for case in run.cases:
        for method in run.methods:
            folder = tmp_path / case["case"] / method
            stem = f"{case['case']}_{method}"
            found = {path.name for path in folder.iterdir()}
            assert found == {"scores.json", f"{stem}.nii.gz", f"{stem}_mip.png", f"{stem}_montage.png"}
    table = list(csv.DictReader((tmp_path / "scoreboard.csv").open()))
    assert {row["method"] for row in table} == set(run.methods)
    assert rows["saliency"].cases == 2
    assert {"insertion_zero", "deletion_zero", "infidelity", "truth_average_precision"} <= set(rows["saliency"].scores)
    # Sensitivity and randomisation on one of the two cases, of methods that ask a network.
    assert rows["saliency"].scores["sensitivity"].missing == 1
    assert rows["label_distance"].scores["sensitivity"].count == 0
    assert rows["saliency"].forward_passes == pytest.approx(1)
    assert rows["saliency"].backward_passes == pytest.approx(1)
    assert rows["unoise"].backward_passes == 0
    assert rows["saliency"].peak_gb > rows["unoise"].peak_gb > 0
    first = run.files.read(run.cases[0]["case"], "saliency")
    assert (first["label"], first["constant"]) == ("label", False)


def test_it_goes_on_with_what_is_missing(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Saliency.attribute

    def counted(self: Saliency, *arguments: Any) -> Any:
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Saliency, "attribute", counted)
    options = {"methods": ["saliency"], "robust_cases": 0}
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 2
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 2
    (tmp_path / find_cases(cohort)[1]["case"] / "saliency" / "scores.json").unlink()
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 3
    # Another precision is another result.
    comparison(segmenter, task, cohort, tmp_path, **options, memory_gb=1.0).run()
    assert len(calls) == 5


class Failing(Saliency):
    """Fails on the second case."""

    calls = 0

    def attribute(self, *arguments: Any) -> Any:
        type(self).calls += 1
        if type(self).calls == 2:
            raise MemoryError("memory_gb must be at least 7")
        return super().attribute(*arguments)


def test_a_method_that_fails_on_a_case_is_reported_and_tried_again(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, "saliency": Failing})
    monkeypatch.setattr(Failing, "calls", 0)
    options = {"methods": ["saliency", "unoise"], "robust_cases": 0}
    rows = {row.method: row for row in comparison(segmenter, task, cohort, tmp_path, **options).run()}
    assert (rows["saliency"].cases, rows["saliency"].failed) == (1, 1)
    assert (rows["unoise"].cases, rows["unoise"].failed) == (2, 0)
    name = find_cases(cohort)[1]["case"]
    text = (tmp_path / "scoreboard.md").read_text()
    assert f"- saliency on {name}: MemoryError: memory_gb must be at least 7" in text
    rows = {row.method: row for row in comparison(segmenter, task, cohort, tmp_path, **options).run()}
    assert (rows["saliency"].cases, rows["saliency"].failed) == (2, 0)


def test_without_labels_the_whole_image_s_segmentation_counts(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path
) -> None:
    cases = find_cases(cohort / "imagesTs")
    run = comparison(segmenter, task, cohort, tmp_path, cases=cases, methods=["saliency"], robust_cases=0)
    run.run()
    found = run.files.read(cases[0]["case"], "saliency")
    assert found["label"] == "own segmentation"
    assert found["curves"]["zero"]["insertion"]["dice"][-1] == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": []}, "cases and methods must be at least one each, got 2 and 0"),
        ({"cases": []}, "cases and methods must be at least one each, got 0 and"),
        ({"methods": ["salience"]}, "method must be one of .*got 'salience'"),
    ],
)
def test_refusals(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, changes: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        comparison(segmenter, task, cohort, tmp_path, **changes)
