"""``unoise phantom`` writes what it is asked for."""

import json
from pathlib import Path

import nibabel as nib
import pytest

from unoise_monai.cli.main import main

SMALL = ["--size", "16", "16", "16", "--quiet"]


def test_a_cohort_of_the_kind_and_grid_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    assert main(["phantom", str(root), "--count", "1", "--kind", "vessels", *SMALL, "--spacing_mm", "1", "2", "3"]) == 0
    assert json.loads((root / "dataset.json").read_text())["modality"] == {"0": "MRA"}
    (scan,) = (root / "imagesTr").glob("*.nii.gz")
    assert nib.load(scan).shape == (16, 16, 16)
    assert nib.load(scan).header.get_zooms() == pytest.approx((1, 2, 3))


def test_tests_come_beside_and_bad_counts_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    assert main(["phantom", str(root), "--count", "1", "--test_count", "1", *SMALL]) == 0
    assert json.loads((root / "dataset.json").read_text())["numTest"] == 1
    assert main(["phantom", str(tmp_path / "none"), "--count", "0", *SMALL]) == 2
