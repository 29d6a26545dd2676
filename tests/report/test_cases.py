"""Which cases are explained, and that a map finds its way back to the file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from unoise_monai.runs.comparison import find_cases, load_case

from unoise_monai.data import SegmentationTask, split_cases
from unoise_monai.data.finding import list_cases

CPU = torch.device("cpu")


def test_labelled_cases_by_part_and_choice(cohort: Path, tmp_path: Path) -> None:
    split = split_cases(list_cases(cohort), tmp_path / "split.json", 0.34, 0.0)
    names = [case["case"] for case in list_cases(cohort)]
    assert [case["case"] for case in find_cases(cohort)] == names
    validation = find_cases(cohort, tmp_path / "split.json", "validation")
    assert validation == split["validation"]
    assert [case["case"] for case in find_cases(cohort, choice=2)] == names[:2]
    assert [case["case"] for case in find_cases(cohort, choice=[names[2], names[0]])] == [names[2], names[0]]
    assert [case["case"] for case in find_cases(cohort, choice=names[1])] == [names[1]]


def test_volumes_without_labels_and_other_listers(cohort: Path) -> None:
    assert [set(case) for case in find_cases(cohort / "imagesTs")] == [{"case", "image"}]
    file = next((cohort / "imagesTs").iterdir())
    assert find_cases(file)[0]["image"] == str(file)
    assert (
        find_cases(cohort / "imagesTs", lister=lambda folder: [{"case": folder.name, "image": "x"}])[0]["image"] == "x"
    )


def test_a_map_comes_back_to_the_file_s_grid(cohort: Path, task: SegmentationTask) -> None:
    case = list_cases(cohort)[0]
    volumes = load_case(case, task, CPU)
    file = nib.load(case["image"])
    assert volumes.spacing_mm == pytest.approx((16, 16, 16))
    assert volumes.label is not None
    assert volumes.label.shape == volumes.image.shape
    # The image itself, taken there and back, is the file's where it is smooth: near, and not turned or mirrored.
    back = volumes.on_file_grid(volumes.image.as_tensor())
    assert tuple(back.shape[1:]) == file.shape
    np.testing.assert_array_equal(back.affine.numpy(), file.affine)
    windowed = np.clip((file.get_fdata() + 96) / 311 * 4 - 2, -2, 2)
    assert np.corrcoef(windowed.ravel(), back.numpy().ravel())[0, 1] > 0.95


def test_another_label_map_lands_on_the_network_s_grid(cohort: Path, task: SegmentationTask) -> None:
    case = list_cases(cohort)[0]
    volumes = load_case(case, task, CPU)
    # The truth's target is the label.
    truth = volumes.labels_from(cohort / "truthTr" / f"{volumes.name}.nii.gz")
    assert truth.dtype == torch.int64
    assert volumes.label is not None
    overlap = ((truth == 1) & (volumes.label == 1)).sum() / (volumes.label == 1).sum()
    assert float(overlap) > 0.9
    with pytest.raises(FileNotFoundError, match=r"must have a label map .*nobody.nii.gz"):
        volumes.labels_from(cohort / "nobody.nii.gz")


def test_a_case_without_a_label_has_none(cohort: Path, task: SegmentationTask) -> None:
    assert load_case(find_cases(cohort / "imagesTs")[0], task, CPU).label is None
