"""A comparison makes and scores every map, goes on where it stopped, and outlives a method that fails."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from killing import table
from tasks import pancreas
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.bundle import Bundle
from unoise_monai.data import preprocessing
from unoise_monai.data.cases import Case
from unoise_monai.data.finding import find_cases
from unoise_monai.handlers import ImportanceSaver, PictureSaver
from unoise_monai.inference import Explainer, TiledInferer
from unoise_monai.metrics import MapScorer
from unoise_monai.metrics.scores import Infidelity, PhantomTruth, Randomisation, Sensitivity, Visibility
from unoise_monai.metrics.visibility import Hiding
from unoise_monai.phantoms import Truth
from unoise_monai.runs import Comparison, Summary, explain_cases, scoreboard, settings_of
from unoise_monai.runs.records import Records
from unoise_monai.unoise import ExplainedSegmenter

TASK = pancreas(spacing_mm=(16.0, 16.0, 16.0))
SCORER = MapScorer(
    [
        Visibility({"zero": Hiding("zero")}, shares=(0.0, 0.3, 1.0), measures=("dice",)),
        Infidelity(samples=4),
        Sensitivity(samples=1),
        Randomisation(steps=1),
        PhantomTruth(),
    ]
)


class Bright(nn.Module):
    """Segments what is brighter than soft tissue: no training needed."""

    stride = 1
    halo = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Conv3d(2, 2, 3, padding=1)
        with torch.no_grad():
            for layer in (self.conv, self.head):
                layer.weight.zero_()
                layer.bias.zero_()
            self.conv.weight[0] = 1 / 27
            self.conv.weight[1] = -1 / 27
            self.head.weight[1, 0] = 1 / 27
            self.head.bias[0] = 0.05

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)))


@pytest.fixture
def cases(folder: Path) -> list[Case]:
    """Two with labels."""
    return [case for case in find_cases(folder) if case.label is not None][:2]


@pytest.fixture
def bundle() -> Bundle:
    torch.manual_seed(0)
    noise_model = nn.Conv3d(1, 1, 3, padding=1)
    noise_model.stride, noise_model.halo = 1, 1  # type: ignore[assignment]
    network = ExplainedSegmenter(Bright(), noise_model).eval()
    chain = preprocessing(TASK, with_label=False)
    return Bundle(
        name="bright",
        version="0.1",
        class_names=("background", "bright"),
        explainer=Explainer(network, chain, TiledInferer(precision="fp32")),
        savers=(ImportanceSaver(),),
        config=None,
        weights_sha256="0" * 64,
        config_sha256="1" * 64,
    )


@pytest.fixture(autouse=True)
def blank_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time, and are the affair of the scoreboard's own tests."""
    for name in ("plot_costs", "plot_visibility"):
        monkeypatch.setattr(scoreboard, name, lambda *given, **options: np.zeros((2, 2, 3), np.uint8))


def compare(
    bundle: Bundle, cases: Sequence[Case], output: Path, methods: Sequence[str] = ("saliency",), **changes: Any
) -> Summary:
    comparison = Comparison(methods, **{"scorer": SCORER, "robust_cases": 0, **changes})
    return explain_cases(cases, bundle, settings_of(bundle), output, comparison, workers=0, quiet=True)


def results_of(output: Path, case: Case) -> dict[str, Any]:
    record = Records(output).read(case.name)
    assert record is not None
    return dict(record["methods"])


def counts_of(output: Path) -> dict[str, tuple[str, str]]:
    return {row["method"]: (row["cases"], row["failed"]) for row in table(output, "scoreboard.csv")}


def broken_copy(folder: Path, images: Path) -> tuple[list[Case], Path, bytes]:
    """Two cases in a folder of their own, the file of the first cut in half, and what it held."""
    shutil.copytree(folder / "imagesTr", images)
    cases = find_cases(images)[:2]
    bad = cases[0].files[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    return cases, bad, whole


def test_every_case_and_method(bundle: Bundle, cases: list[Case], folder: Path, tmp_path: Path) -> None:
    bundle = replace(bundle, savers=(ImportanceSaver(), PictureSaver(pictures=["montage"], count=1)))
    methods = ("saliency", "unoise", "intensity", "random", "label_distance")
    summary = compare(bundle, cases, tmp_path, methods, robust_cases=1, truth_dir=folder / "truthTr")
    assert (summary.done, summary.failed) == (2, 0)
    for case in cases:
        maps = {f"{case.name}_{method}{end}" for method in methods for end in (".nii.gz", "_montage.png")}
        own = {f"{case.name}_{end}" for end in ("importance.nii.gz", "seg.nii.gz", "montage.png")}
        assert {path.name for path in (tmp_path / case.name).iterdir()} == maps | own
        # A map lies on the grid of its file: here the magnitudes of the intensities.
        written = nib.load(tmp_path / case.name / f"{case.name}_intensity.nii.gz")
        item = bundle.explainer.preprocess({"case": case.name, "image": str(case.files[0])})
        expected = bundle.explainer.on_file_grid(item["image"][None].abs(), item)[0]
        np.testing.assert_allclose(written.get_fdata(), expected, atol=1e-6)
        np.testing.assert_allclose(written.affine, nib.load(case.files[0]).affine, atol=1e-5)
    assert counts_of(tmp_path) == dict.fromkeys(methods, ("2", "0"))
    first, second = (results_of(tmp_path, case) for case in cases)
    assert {"insertion_zero", "deletion_zero", "infidelity", "truth_average_precision"} <= set(
        first["saliency"]["scores"]
    )
    # Sensitivity and randomisation on one of the two cases, of methods that ask a network.
    assert "sensitivity" in first["saliency"]["scores"]
    assert "sensitivity" not in second["saliency"]["scores"]
    assert "sensitivity" not in first["label_distance"]["scores"]
    assert (first["saliency"]["forward_passes"], first["saliency"]["backward_passes"]) == pytest.approx((1, 1))
    assert first["unoise"]["backward_passes"] == 0
    assert first["saliency"]["peak_gb"] > first["unoise"]["peak_gb"] > 0
    assert (first["saliency"]["label"], first["saliency"]["constant"]) == ("label", False)
    # The target of a phantom's truth is the label: whoever ranks by the label finds it before all else.
    truth = np.asarray(nib.load(folder / "truthTr" / f"{cases[0].name}.nii.gz").dataobj)
    target, landmark = (int((truth == tissue).sum()) for tissue in (Truth.TARGET, Truth.LANDMARK))
    found = first["label_distance"]["scores"]["truth_top_target"]
    assert found == pytest.approx(target / (target + landmark), rel=0.2)
    assert found > 2 * first["random"]["scores"]["truth_top_target"]


def test_a_map_is_scored_against_the_label(bundle: Bundle, cases: list[Case], tmp_path: Path) -> None:
    """With everything visible, the curve ends at the Dice of the whole image."""
    compare(bundle, cases[:1], tmp_path)
    item = preprocessing(TASK)({"case": "a", "image": str(cases[0].files[0]), "label": str(cases[0].label)})
    with torch.no_grad():
        found = bundle.explainer.network.utility(item["image"].as_tensor()[None]).argmax(dim=1) > 0
    label = item["label"].as_tensor() > 0
    dice = 2 * (found & label).sum() / (found.sum() + label.sum())
    curve = results_of(tmp_path, cases[0])["saliency"]["curves"]["zero"]["insertion"]["dice"]
    assert curve[-1] == pytest.approx(float(dice), abs=1e-6)


def test_without_labels_the_whole_image_s_segmentation_counts(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    cases = find_cases(folder / "imagesTs")
    compare(bundle, cases, tmp_path)
    found = results_of(tmp_path, cases[0])["saliency"]
    assert found["label"] == "own segmentation"
    assert found["curves"]["zero"]["insertion"]["dice"][-1] == 1


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


def test_it_goes_on_with_what_is_missing(bundle: Bundle, cases: list[Case], tmp_path: Path, calls: list[int]) -> None:
    compare(bundle, cases, tmp_path)
    assert len(calls) == 2
    assert compare(bundle, cases, tmp_path).kept == 2
    assert len(calls) == 2
    (Records(tmp_path).folder / f"{cases[1].name}.json").unlink()
    compare(bundle, cases, tmp_path)
    assert len(calls) == 3
    # A method that comes later takes nothing from those that are there.
    compare(bundle, cases, tmp_path, ("random", "saliency"))
    assert len(calls) == 3
    assert counts_of(tmp_path) == {"random": ("2", "0"), "saliency": ("2", "0")}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"options": {"saliency": {"sign": "positive"}}}, 1),
        ({"options": {"rise": {"masks": 3}}}, 0),
        ({"scorer": replace(SCORER, seed=1)}, 1),
        ({"truth_dir": "truthTr"}, 1),
        # One map to score, two each for sensitivity and randomisation, one to watch its memory.
        ({"robust_cases": 1}, 6),
        ({"robust_cases": 1, "robust_passes": 1.0}, 1),
        ({"robust_passes": 7.0}, 0),
    ],
)
def test_other_options_make_another_result(
    bundle: Bundle,
    cases: list[Case],
    folder: Path,
    tmp_path: Path,
    calls: list[int],
    changes: dict[str, Any],
    again: int,
) -> None:
    methods = ("saliency", "random")
    compare(bundle, cases[:1], tmp_path, methods)
    before = results_of(tmp_path, cases[0])["random"]
    calls.clear()
    if "truth_dir" in changes:
        changes = {"truth_dir": folder / changes["truth_dir"]}
    compare(bundle, cases[:1], tmp_path, methods, **changes)
    assert len(calls) == again
    compare(bundle, cases[:1], tmp_path, methods, **changes)
    assert len(calls) == again
    if "options" in changes:
        # Of that method only: the other's time, too, is that of the first run.
        assert results_of(tmp_path, cases[0])["random"] == before


def test_the_first_robust_case_decides_for_all(
    bundle: Bundle, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Saliency.attribute

    def growing(self: Saliency, image: Any, score: Any) -> Any:
        """The first case's maps take a pass there and back, later ones more."""
        first = Records(tmp_path).read(cases[0].name)
        for _ in range(int(first is not None and first["status"] == "done")):
            original(self, image, score)
        return original(self, image, score)

    monkeypatch.setattr(Saliency, "attribute", growing)

    def robust(passes: float) -> list[bool]:
        compare(bundle, cases, tmp_path, robust_cases=2, robust_passes=passes)
        return ["sensitivity" in results_of(tmp_path, case)["saliency"]["scores"] for case in cases]

    assert robust(3.0) == [True, True]
    # It is decided likewise where the first case is there from an earlier run.
    Records(tmp_path).forget(cases[1].name)
    assert robust(3.0) == [True, True]
    Records(tmp_path).forget(cases[0].name)
    assert robust(1.0) == [False, False]


def test_a_bad_case_does_not_end_the_run(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    cases, bad, whole = broken_copy(folder, tmp_path / "images")
    out, methods = tmp_path / "out", ("saliency", "unoise")
    summary = compare(bundle, cases, out, methods)
    assert (summary.done, summary.failed) == (1, 1)
    assert counts_of(out) == dict.fromkeys(methods, ("1", "1"))
    text = (out / "scoreboard.md").read_text(encoding="utf-8")
    for method in methods:
        assert f"- {method} on {cases[0].name}: case {cases[0].name}: image file {bad.name}" in text
    assert str(tmp_path) not in text
    bad.write_bytes(whole)
    assert compare(bundle, cases, out, methods).failed == 0
    assert counts_of(out) == dict.fromkeys(methods, ("2", "0"))


class Failing(Saliency):
    """Fails on the second case."""

    calls = 0

    def attribute(self, *arguments: Any) -> Any:
        type(self).calls += 1
        if type(self).calls == 2:
            raise ValueError("the layer must be another")
        return super().attribute(*arguments)


def test_a_method_that_fails_on_a_case_is_reported_and_tried_again(
    bundle: Bundle, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "METHODS", {**base.METHODS, "saliency": Failing})
    monkeypatch.setattr(Failing, "calls", 0)
    methods = ("saliency", "unoise")
    assert compare(bundle, cases, tmp_path, methods).failed == 1
    assert counts_of(tmp_path) == {"saliency": ("1", "1"), "unoise": ("2", "0")}
    line = f"- saliency on {cases[1].name}: ValueError: the layer must be another"
    assert line in (tmp_path / "scoreboard.md").read_text(encoding="utf-8")
    # What else there is of the case is written.
    assert (tmp_path / cases[1].name / f"{cases[1].name}_unoise.nii.gz").is_file()
    assert compare(bundle, cases, tmp_path, methods).failed == 0
    assert counts_of(tmp_path) == dict.fromkeys(methods, ("2", "0"))
    assert Failing.calls == 3


def test_a_missing_truth_is_one_case_s_fault(bundle: Bundle, cases: list[Case], folder: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    shutil.copy(folder / "truthTr" / f"{cases[1].name}.nii.gz", truth)
    compare(bundle, cases, tmp_path / "out", ("random",), truth_dir=truth)
    assert counts_of(tmp_path / "out") == {"random": ("1", "1")}
    assert "truth_average_precision" in results_of(tmp_path / "out", cases[1])["random"]["scores"]
    text = (tmp_path / "out" / "scoreboard.md").read_text(encoding="utf-8")
    assert f"must have a label map {cases[0].name}.nii.gz, got none" in text
    assert str(tmp_path) not in text


def test_an_empty_label_has_no_areas_and_the_rest_all_the_same(
    bundle: Bundle, cases: list[Case], tmp_path: Path
) -> None:
    label = nib.load(cases[0].label)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), tmp_path / "empty.nii.gz")
    case = replace(cases[0], label=tmp_path / "empty.nii.gz")
    compare(bundle, [case], tmp_path / "out", robust_cases=1)
    assert counts_of(tmp_path / "out") == {"saliency": ("1", "0")}
    found = results_of(tmp_path / "out", case)["saliency"]
    robust = {"sensitivity", "randomisation_correlation", "randomisation_ssim", "unchanged"}
    assert set(found["scores"]) == {"infidelity", *robust}
    assert found["curves"]["zero"]["insertion"]["dice"] == [None, None, None]


def test_a_result_that_json_does_not_take_is_a_failure(
    bundle: Bundle, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Saliency.attribute

    def noted(self: Saliency, image: Any, score: Any) -> Any:
        score.notes["tensor"] = torch.zeros(1)
        return original(self, image, score)

    monkeypatch.setattr(Saliency, "attribute", noted)
    compare(bundle, cases, tmp_path, ("saliency", "random"))
    assert counts_of(tmp_path) == {"saliency": ("0", "2"), "random": ("2", "0")}


def test_robustness_is_asked_where_the_network_segments(
    bundle: Bundle, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(Randomisation, "__call__", lambda score, subject: asked.append(subject.where) or {})
    compare(bundle, cases[:1], tmp_path, robust_cases=1)
    item = preprocessing(TASK)({"case": "a", "image": str(cases[0].files[0]), "label": str(cases[0].label)})
    with torch.no_grad():
        outline = bundle.explainer.network.utility(item["image"].as_tensor()[None]).argmax(dim=1, keepdim=True) > 0
    assert torch.equal(asked[0], outline)
    assert not torch.equal(outline, item["label"].as_tensor()[None] > 0)
