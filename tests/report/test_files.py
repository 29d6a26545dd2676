"""Maps, pictures and scores lie where they belong, whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from unoise_monai.data import SegmentationTask
from unoise_monai.data.finding import list_cases
from unoise_monai.runs.comparison import CaseFiles, load_case, reason


def test_a_map_on_the_file_s_grid_and_its_pictures(cohort: Path, task: SegmentationTask, tmp_path: Path) -> None:
    case = list_cases(cohort)[0]
    volumes = load_case(case, task, torch.device("cpu"))
    files = CaseFiles(tmp_path)
    assert volumes.label is not None
    files.start(volumes, volumes.label)
    importance = volumes.image.as_tensor().clamp_min(0)
    files.write_map("saliency", volumes, importance)
    folder = tmp_path / volumes.name / "saliency"
    assert {path.name for path in folder.iterdir()} == {
        f"{volumes.name}_saliency{end}" for end in (".nii.gz", "_mip.png", "_montage.png")
    }
    written, scan = nib.load(folder / f"{volumes.name}_saliency.nii.gz"), nib.load(case["image"])
    assert written.shape == scan.shape
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)
    assert np.corrcoef(written.get_fdata().ravel(), np.clip(scan.get_fdata(), 59.5, 215).ravel())[0, 1] > 0.9


def test_done_is_what_has_scores_of_the_same_settings_and_did_not_fail(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path, pictures=False)
    result = {"case": "a", "method": "rise", "settings": {"options": {"masks": 3}}, "scores": {}}
    assert not files.done("a", "rise", result["settings"])
    files.write(result)
    assert files.read("a", "rise") == result
    assert not files.done("a", "rise", result["settings"])
    (tmp_path / "a" / "rise" / "a_rise.nii.gz").touch()
    assert files.done("a", "rise", {"options": {"masks": 3}})
    assert not files.done("a", "rise", {"options": {"masks": 4}})
    assert not files.done("b", "rise", {"options": {"masks": 3}})
    # Pictures that are asked for now were not drawn then.
    assert not CaseFiles(tmp_path).done("a", "rise", {"options": {"masks": 3}})
    for name in ("mip", "montage"):
        (tmp_path / "a" / "rise" / f"a_rise_{name}.png").touch()
    assert CaseFiles(tmp_path).done("a", "rise", {"options": {"masks": 3}})
    files.write({**result, "failed": "MemoryError: too large"})
    assert not files.done("a", "rise", {"options": {"masks": 3}})


def test_what_is_no_number_is_null_and_what_is_no_json_leaves_the_old_scores(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path)
    result = {"case": "a", "method": "rise", "notes": {"delta": math.inf, "of": [1, (math.nan, -0.5)]}, "scores": {}}
    files.write(result)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "a" / "rise" / "scores.json").read_text()
    assert json.loads(text, parse_constant=refuse)["notes"] == {"delta": None, "of": [1, [None, -0.5]]}
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write({**result, "notes": torch.zeros(1)})
    assert (tmp_path / "a" / "rise" / "scores.json").read_text() == text
    assert [path.name for path in (tmp_path / "a" / "rise").iterdir()] == ["scores.json"]


def test_a_reason_names_files_without_their_folders() -> None:
    case = {"case": "a", "image": "/home/user/images/a.nii.gz", "label": "/home/user/labels/a.nii.gz"}
    error = ValueError("/home/user/images/a.nii.gz and /home/user/labels/a.nii.gz must lie on one grid")
    assert reason(error, case) == "ValueError: a.nii.gz and a.nii.gz must lie on one grid"
    missing = FileNotFoundError("a must have a label map /data/truth/a.nii.gz, got none")
    assert reason(missing, case, Path("/data/truth")).endswith("a must have a label map a.nii.gz, got none")
