"""The bundle that ``unoise fit`` has made, as it is shipped."""

import json
from pathlib import Path

import numpy as np
import pytest

from unoise_monai.bundle import load_bundle
from unoise_monai.data.reading import load_volume
from unoise_monai.metrics.overlap import dice_per_class
from unoise_monai.report.verify import verify

ROOT = Path(__file__).resolve().parents[2]
HEART = ROOT / "bundles" / "heart_mr_unoise"
DATA = ROOT.parent / "shared" / "data" / "sunnybrook_lv"


def test_it_is_what_the_model_zoo_asks_for() -> None:
    diagnosis = verify(HEART)
    assert diagnosis.ok, diagnosis.lines


def test_its_page_and_its_metadata_have_the_numbers_that_were_measured() -> None:
    facts = json.loads((HEART / "fit.json").read_text(encoding="utf-8"))
    metrics = json.loads((HEART / "configs" / "metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    page = (HEART / "docs" / "README.md").read_text(encoding="utf-8")
    assert facts["believed"]
    for row, numbers in facts["table"].items():
        assert f"| {row} | {' | '.join(f'{value:.3f}' for value in numbers.values())} |" in page
        for share, value in numbers.items():
            assert metrics[f"mean Dice, {row}, {share} visible"] == value


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/sunnybrook_lv")
def test_it_finds_the_left_ventricle_of_a_patient_that_it_has_not_seen() -> None:
    case = json.loads((HEART / "models" / "split.json").read_text(encoding="utf-8"))["test"][0]
    explanation = load_bundle(HEART, "cpu").explain(DATA / "imagesTr" / f"{case}.nii.gz")
    label = load_volume(DATA / "labelsTr" / f"{case}.nii.gz")
    assert explanation.importance.shape[1:] == label.shape
    np.testing.assert_allclose(np.asarray(explanation.importance.affine), np.asarray(label.affine), atol=1e-5)
    assert dice_per_class(explanation.segmentation[0], label.round().long(), 2)[0] > 0.6
    assert float(explanation.importance.std()) > 0.01
