"""A case is read once, whole, onto its file's grid and the network's."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from unoise_monai.bundle import Bundle, fingerprint
from unoise_monai.data import CaseError, preprocessing
from unoise_monai.data.cases import Case
from unoise_monai.runs.explain import CaseReader
from unoise_monai.runs.records import inputs_of


@pytest.fixture
def read(bundle: Bundle) -> CaseReader:
    return CaseReader(bundle)


@pytest.fixture
def organs(case: Case, tmp_path: Path) -> Case:
    image = nib.load(case.files[0])
    labels = np.zeros(image.shape, np.int16)
    labels[5:9] = 3
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "organs.nii.gz")
    return replace(case, organs=tmp_path / "organs.nii.gz")


def test_the_preprocessed_image_is_that_of_the_chain(case: Case, bundle: Bundle, read: CaseReader) -> None:
    assert bundle.task is not None
    expected = preprocessing(bundle.task, with_label=False)({"image": str(case.files[0])})["image"]
    # Sent to another process, a reader builds the chain from the configuration.
    for reader in (read, pickle.loads(pickle.dumps(read))):  # noqa: S301
        found = reader(case).item["image"]
        assert torch.equal(found, expected)
        assert torch.equal(found.affine, expected.affine)
        assert [step["class"] for step in found.applied_operations] == [
            step["class"] for step in expected.applied_operations
        ]


def test_a_chain_that_cannot_be_sent_is_built_from_the_configuration(
    make_bundle: Callable[..., Bundle], case: Case
) -> None:
    step = {"_target_": "Lambdad", "keys": "image", "func": "$lambda image: 2 * image"}
    chain = {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": "image"}, step]}
    bundle = make_bundle(preprocessing=chain)
    reader = pickle.loads(pickle.dumps(CaseReader(bundle)))  # noqa: S301
    expected = bundle.explainer.preprocess({"image": str(case.files[0])})["image"]
    assert torch.equal(reader(case).item["image"], expected)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(CaseReader(replace(bundle, config=None)))


def test_scan_and_label_are_those_of_the_files(case: Case, read: CaseReader) -> None:
    loaded = read(case)
    assert case.label is not None
    image, label = nib.load(case.files[0]), nib.load(case.label)
    np.testing.assert_array_equal(loaded.scan[0].numpy(), image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(loaded.scan.affine, image.affine)
    assert loaded.label is not None
    assert 1 in loaded.label
    np.testing.assert_array_equal(loaded.label, np.asarray(label.dataobj))
    assert loaded.source == fingerprint(inputs_of(case))


def test_labels_are_merged_where_the_task_says_so(case: Case, bundle: Bundle, tmp_path: Path) -> None:
    assert case.label is not None
    stored = nib.load(case.label)
    labels = np.asarray(stored.dataobj).astype(np.uint8)
    labels[::2] *= 2
    nib.save(nib.Nifti1Image(labels, stored.affine), tmp_path / "label.nii.gz")
    config: dict[str, Any] = dict(bundle.config or {})
    merging = replace(bundle, config={**config, "task": {**config["task"], "merge_labels": True}})
    found = CaseReader(merging)(replace(case, label=tmp_path / "label.nii.gz")).label
    assert 2 in labels
    np.testing.assert_array_equal(found, labels > 0)


def test_organs_are_named_by_the_table_beside_them(organs: Case, read: CaseReader, tmp_path: Path) -> None:
    assert read(organs).organ_names == {3: "label 3"}
    (tmp_path / "organs.json").write_text(json.dumps({"3": "liver"}), encoding="utf-8")
    loaded = read(organs)
    assert loaded.organ_names == {3: "liver"}
    assert loaded.organs is not None
    assert (loaded.organs[5:9] == 3).all()
    (tmp_path / "organs.json").write_text("{", encoding="utf-8")
    with pytest.raises(CaseError, match=r"organs\.json must map labels to names"):
        read(organs)


def test_a_file_that_has_vanished_is_named_as_it_is_shown(case: Case, read: CaseReader, tmp_path: Path) -> None:
    gone = replace(case, files=(tmp_path / "gone.nii.gz",), shown="gone.nii.gz", label=None)
    with pytest.raises(CaseError, match=r"image file .*gone\.nii\.gz is missing"):
        read(gone)


def test_the_problem_that_the_search_has_found_is_raised(case: Case, read: CaseReader) -> None:
    with pytest.raises(CaseError, match="is a link out of the folder"):
        read(replace(case, files=(), problem="case x: is a link out of the folder"))


@pytest.mark.parametrize(
    ("cut", "shift", "added", "says"),
    [(1, 0, 0, "must lie on"), (0, 5, 0, "must lie on"), (0, 0, 0.5, "whole numbers"), (0, 0, -5, "labels 0 to")],
)
def test_organs_that_cannot_be_are_refused(
    cut: int, shift: int, added: float, says: str, organs: Case, read: CaseReader
) -> None:
    assert organs.organs is not None
    image = nib.load(organs.organs)
    labels, affine = np.asarray(image.dataobj).astype(np.float32), image.affine.copy()
    affine[0, 3] += shift
    nib.save(nib.Nifti1Image(labels[cut:] + np.float32(added), affine), organs.organs)
    with pytest.raises(CaseError, match=says):
        read(organs)
