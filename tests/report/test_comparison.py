"""A comparison writes every map, scores it, goes on where it stopped, and outlives a method that fails."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from unoise_monai.runs.comparison import load_case

from unoise_monai.attribution import registry
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.data import SegmentationTask
from unoise_monai.metrics import Hiding, Infidelity, PhantomTruth, Randomisation, Sensitivity, Visibility
from unoise_monai.runs import Comparison, MapScorer, find_cases
from unoise_monai.unoise import ExplainedSegmenter

VISIBILITY = Visibility({"zero": Hiding("zero")}, (0.0, 0.3, 1.0), ("dice",))
SCORER = MapScorer([VISIBILITY, Infidelity(4), Sensitivity(1), Randomisation(1), PhantomTruth()])


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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every saliency map."""
    made: list[int] = []
    original = Saliency.attribute

    def counted(self: Saliency, *arguments: Any) -> Any:
        made.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Saliency, "attribute", counted)
    return made


def test_it_goes_on_with_what_is_missing(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, calls: list[int]
) -> None:
    options = {"methods": ["saliency"], "robust_cases": 0}
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 2
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 2
    (tmp_path / find_cases(cohort)[1]["case"] / "saliency" / "scores.json").unlink()
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"precision": "bf16"}, 1),
        ({"memory_gb": 1.0}, 1),
        ({"options": {"saliency": {"sign": "positive"}}}, 1),
        ({"options": {"rise": {"masks": 3}}}, 0),
        ({"truth": True}, 1),
        ({"pictures": True}, 1),
        # One map to score, two each for sensitivity and randomisation, one to watch its memory.
        ({"robust_cases": 1}, 6),
        ({"robust_cases": 1, "robust_passes": 1.0}, 1),
        ({"robust_passes": 7.0}, 0),
    ],
)
def test_other_settings_make_another_result(
    segmenter: ExplainedSegmenter,
    task: SegmentationTask,
    cohort: Path,
    tmp_path: Path,
    calls: list[int],
    changes: dict[str, Any],
    again: int,
) -> None:
    options = {"methods": ["saliency"], "robust_cases": 0, "cases": find_cases(cohort, choice=1)}
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    calls.clear()
    if changes.pop("truth", False):
        changes["truth_dir"] = cohort / "truthTr"
    changed = {**options, **changes}
    comparison(segmenter, task, cohort, tmp_path, **changed).run()
    assert len(calls) == again
    comparison(segmenter, task, cohort, tmp_path, **changed).run()
    assert len(calls) == again


def test_other_weights_make_another_result(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, calls: list[int]
) -> None:
    options = {"methods": ["saliency", "unoise"], "robust_cases": 0, "cases": find_cases(cohort, choice=1)}
    run = comparison(segmenter, task, cohort, tmp_path, **options)
    run.run()
    name = run.cases[0]["case"]
    before = run.files.read(name, "unoise")["settings"]["weights"]
    # Another noise model changes its own maps alone, another utility all.
    with torch.no_grad():
        segmenter.noise_model.weight[0, 0, 1, 1, 1] += 0.5
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 1
    assert run.files.read(name, "unoise")["settings"]["weights"] != before
    with torch.no_grad():
        segmenter.utility.head.bias[0] += 0.01
    comparison(segmenter, task, cohort, tmp_path, **options).run()
    assert len(calls) == 2


def test_another_volume_of_the_same_name_makes_another_result(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, calls: list[int]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(cohort / "imagesTr", images)
    options = {"cases": find_cases(images)[:2], "methods": ["saliency"], "robust_cases": 0}
    comparison(segmenter, task, cohort, tmp_path / "out", **options).run()
    file = Path(options["cases"][0]["image"])
    scan = nib.load(file)
    nib.save(nib.Nifti1Image(np.flip(scan.get_fdata(), 0).astype(np.float32), scan.affine), file)
    calls.clear()
    comparison(segmenter, task, cohort, tmp_path / "out", **options).run()
    assert len(calls) == 1


def test_the_first_robust_case_decides_for_all(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Saliency.attribute
    names = [case["case"] for case in find_cases(cohort)]
    maps: list[int] = []

    def growing(self: Saliency, image: Any, score: Any) -> Any:
        """The first case's maps take a pass there and back, later ones more."""
        maps.append(1)
        for _ in range(int((tmp_path / names[0] / "saliency" / "scores.json").is_file())):
            original(self, image, score)
        return original(self, image, score)

    monkeypatch.setattr(Saliency, "attribute", growing)

    def scores(passes: float) -> list[set[str]]:
        run = comparison(segmenter, task, cohort, tmp_path, methods=["saliency"], robust_cases=2, robust_passes=passes)
        run.run()
        return [set(run.files.read(name, "saliency")["scores"]) for name in names[:2]]

    assert all("sensitivity" in found for found in scores(3.0))
    # It is decided likewise where the first case is there from an earlier run.
    (tmp_path / names[1] / "saliency" / "scores.json").unlink()
    assert all("sensitivity" in found for found in scores(3.0))
    shutil.rmtree(tmp_path / names[0])
    assert not any("sensitivity" in found for found in scores(1.0))


def test_a_bad_case_does_not_end_the_run(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(cohort / "imagesTr", images)
    cases = find_cases(images)
    bad = Path(cases[0]["image"])
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    options = {"cases": cases[:2], "methods": ["saliency", "unoise"], "robust_cases": 0}
    rows = comparison(segmenter, task, cohort, tmp_path / "out", **options).run()
    assert [(row.cases, row.failed) for row in rows] == [(1, 1), (1, 1)]
    text = (tmp_path / "out" / "scoreboard.md").read_text()
    assert f"- saliency on {cases[0]['case']}: CaseError: " in text
    assert f"- unoise on {cases[0]['case']}: CaseError: " in text
    assert bad.name in text
    assert str(tmp_path) not in text
    bad.write_bytes(whole)
    rows = comparison(segmenter, task, cohort, tmp_path / "out", **options).run()
    assert [(row.cases, row.failed) for row in rows] == [(2, 0), (2, 0)]


def test_a_missing_truth_is_one_case_s_fault(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path
) -> None:
    cases = find_cases(cohort, choice=2)
    truth = tmp_path / "truth"
    truth.mkdir()
    shutil.copy(cohort / "truthTr" / f"{cases[1]['case']}.nii.gz", truth)
    (row,) = comparison(
        segmenter, task, cohort, tmp_path / "out", methods=["random"], robust_cases=0, truth_dir=truth
    ).run()
    assert (row.cases, row.failed) == (1, 1)
    assert row.scores["truth_average_precision"].count == 1
    assert str(tmp_path) not in (tmp_path / "out" / "scoreboard.md").read_text()


def test_an_empty_label_has_no_areas_and_the_rest_all_the_same(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path
) -> None:
    case = dict(find_cases(cohort, choice=1)[0])
    label = nib.load(case["label"])
    case["label"] = str(tmp_path / "empty.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), case["label"])
    run = comparison(segmenter, task, cohort, tmp_path / "out", cases=[case], methods=["saliency"])
    (row,) = run.run()
    assert (row.cases, row.failed) == (1, 0)
    found = run.files.read(case["case"], "saliency")
    assert set(found["scores"]) == {
        "infidelity",
        "sensitivity",
        "randomisation_correlation",
        "randomisation_ssim",
        "unchanged",
    }
    assert found["curves"]["zero"]["insertion"]["dice"] == [None, None, None]
    assert "NaN" not in (tmp_path / "out" / case["case"] / "saliency" / "scores.json").read_text()


def test_a_result_that_json_does_not_take_is_a_failure(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Saliency.attribute

    def noted(self: Saliency, image: Any, score: Any) -> Any:
        score.notes["tensor"] = torch.zeros(1)
        return original(self, image, score)

    monkeypatch.setattr(Saliency, "attribute", noted)
    rows = comparison(segmenter, task, cohort, tmp_path, methods=["saliency", "random"], robust_cases=0).run()
    assert {row.method: (row.cases, row.failed) for row in rows} == {"saliency": (0, 2), "random": (2, 0)}


def test_robustness_is_asked_where_the_network_segments(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(Randomisation, "__call__", lambda _, subject: asked.append(subject.where) or {})
    run = comparison(segmenter, task, cohort, tmp_path, methods=["saliency"], cases=find_cases(cohort, choice=1))
    run.run()
    volumes = load_case(run.cases[0], task, torch.device("cpu"))
    assert volumes.label is not None
    with torch.no_grad():
        outline = segmenter.utility(volumes.image.as_tensor()).argmax(dim=1, keepdim=True) > 0
    assert torch.equal(asked[0], outline)
    assert not torch.equal(outline, volumes.label.as_subclass(torch.Tensor) > 0)


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
