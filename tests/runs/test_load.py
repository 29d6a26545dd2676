"""A case is read once, whole, onto its file's grid and the network's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tasks import pancreas

from unoise_monai.data import CaseError, SegmentationTask, preprocessing
from unoise_monai.data.cases import CohortCase
from unoise_monai.runs.load import load
from unoise_monai.runs.records import fingerprint, inputs_of

TASK = pancreas(spacing_mm=(16.0, 16.0, 16.0))


@pytest.fixture
def case(cases: list[CohortCase]) -> CohortCase:
    return next(case for case in cases if case.label is not None)


@pytest.fixture
def organs(case: CohortCase, tmp_path: Path) -> CohortCase:
    image = nib.load(case.files[0])
    labels = np.zeros(image.shape, np.int16)
    labels[5:9] = 3
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "organs.nii.gz")
    return replace(case, organs=tmp_path / "organs.nii.gz")


def test_the_preprocessed_image_is_that_of_the_chain(case: CohortCase) -> None:
    loaded = load(case, TASK)
    expected = preprocessing(TASK, with_label=False)({"image": str(case.files[0])})["image"]
    assert torch.equal(loaded.item["image"], expected)
    assert torch.equal(loaded.item["image"].affine, expected.affine)


def test_scan_and_label_are_those_of_the_files(case: CohortCase) -> None:
    loaded = load(case, TASK)
    assert case.label is not None
    image, label = nib.load(case.files[0]), nib.load(case.label)
    np.testing.assert_array_equal(loaded.scan[0].numpy(), image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(loaded.scan.affine, image.affine)
    assert loaded.label is not None
    assert set(np.unique(loaded.label)) == {0, 1}
    np.testing.assert_array_equal(loaded.label, np.asarray(label.dataobj) > 0)
    assert loaded.source == fingerprint(inputs_of(case))


def test_organs_are_named_by_the_table_beside_them(organs: CohortCase, tmp_path: Path) -> None:
    assert load(organs, TASK).organ_names == {3: "label 3"}
    (tmp_path / "organs.json").write_text(json.dumps({"3": "liver"}))
    loaded = load(organs, TASK)
    assert loaded.organ_names == {3: "liver"}
    assert loaded.organs is not None
    assert (loaded.organs[5:9] == 3).all()


def test_a_file_that_has_vanished_is_named_as_it_is_shown(case: CohortCase, tmp_path: Path) -> None:
    gone = replace(case, files=(tmp_path / "gone.nii.gz",), shown="gone.nii.gz", label=None)
    with pytest.raises(CaseError, match=r"image file .*gone\.nii\.gz must be there until it is read"):
        load(gone, TASK)


def test_what_the_search_has_found_is_said(case: CohortCase) -> None:
    with pytest.raises(CaseError, match="is a link out of the folder"):
        load(replace(case, files=(), problem="case x: is a link out of the folder"), TASK)


@pytest.mark.parametrize("fault", ["shape", "affine", "fractions", "negative"])
def test_organs_that_cannot_be_are_refused(fault: str, organs: CohortCase) -> None:
    assert organs.organs is not None
    image = nib.load(organs.organs)
    labels, affine = np.asarray(image.dataobj).astype(np.float32), image.affine.copy()
    if fault == "shape":
        labels = labels[1:]
    elif fault == "affine":
        affine[0, 3] += 1
    elif fault == "fractions":
        labels += 0.5
    else:
        labels -= 5
    nib.save(nib.Nifti1Image(labels, affine), organs.organs)
    with pytest.raises(CaseError, match=r"must lie on|whole numbers|labels 0 to"):
        load(organs, TASK)


def test_labels_of_more_classes_stay_apart(case: CohortCase) -> None:
    task = SegmentationTask("x", ("background", "a", "b"), TASK.spacing_mm, (16, 16, 16), (-100.0, 200.0))
    assert case.label is not None
    loaded = load(case, task)
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.label, np.asarray(nib.load(case.label).dataobj))
