"""Images of several channels, in one file or one file each, on every way in."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bright import AFFINE

from unoise_monai.data.cases import Case
from unoise_monai.data.finding import find_cases, find_labelled
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, check_item, load_again, load_volume

SHAPE = (6, 7, 5)
VOXELS = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
LABEL = (VOXELS[0] > 0).astype(np.uint8)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def four_d(tmp_path: Path) -> Path:
    write(tmp_path / "imagesTr" / "a.nii.gz", np.moveaxis(VOXELS, 0, -1))
    write(tmp_path / "labelsTr" / "a.nii.gz", LABEL)
    training = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": training}), encoding="utf-8")
    return tmp_path


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    for channel, voxels in enumerate(VOXELS):
        write(tmp_path / "imagesTr" / f"a_{channel:04}.nii.gz", voxels)
    write(tmp_path / "labelsTr" / "a.nii.gz", LABEL)
    names = {str(channel): f"MR {channel}" for channel in range(len(VOXELS))}
    index = {"channel_names": names, "labels": {"background": 0, "lesion": 1}, "numTraining": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


def table(folder: Path) -> Path:
    path = folder / "cases.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "label", *(f"image_{channel}" for channel in (2, 0, 1))])
        writer.writerow(["a", "labelsTr/a.nii.gz", *(f"imagesTr/a_000{channel}.nii.gz" for channel in (2, 0, 1))])
    return path


def check(case: Case) -> None:
    """A case of the three channels, in their order, with its label."""
    item = case.item()
    check_item(item)
    loaded = LoadCased(["image", "label"], 2, channels=3)(item)
    assert (loaded["case"], case.series) == ("a", False)
    torch.testing.assert_close(loaded["image"].as_tensor(), torch.from_numpy(VOXELS))
    assert tuple(loaded["label"].shape) == (1, *SHAPE)
    np.testing.assert_allclose(np.asarray(loaded["image"].affine), AFFINE)
    torch.testing.assert_close(load_again(loaded["image"].meta).as_tensor(), torch.from_numpy(VOXELS[0]))
    assert Case.of(item) == Case(case.name, case.files, case.files[0].name, case.label)


def test_one_file_of_channels(four_d: Path) -> None:
    [case] = find_cases(four_d)
    check(case)


@pytest.mark.parametrize("way", ["data set", "its images", "table"])
def test_a_file_a_channel(way: str, nnunet: Path) -> None:
    path = {"data set": nnunet, "its images": nnunet / "imagesTr", "table": table(nnunet)}[way]
    [case] = find_cases(path)
    assert not case.problem
    check(case)


def test_the_labelled_cases_of_nnunet(nnunet: Path) -> None:
    for channel in range(3):
        write(nnunet / "imagesTs" / f"b_{channel:04}.nii.gz", VOXELS[channel])
    assert [case.name for case in find_cases(nnunet)] == ["a", "b"]
    assert [item["case"] for item in find_labelled(nnunet)] == ["a"]


def test_a_missing_channel_is_a_problem_of_its_case(nnunet: Path) -> None:
    (nnunet / "imagesTr" / "a_0001.nii.gz").unlink()
    [case] = find_cases(nnunet)
    assert case.problem == "must have 3 channels, got 2 files"
    [case] = find_cases(table(nnunet))
    assert "must have all its channels, of which a_0001.nii.gz must be there" in case.problem


@pytest.mark.parametrize(("channels", "rule"), [(1, "a 3-D volume"), (2, "a volume of 2 channels")])
def test_another_number_of_channels_is_refused(channels: int, rule: str, four_d: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=rf"must be {rule}, got shape \(6, 7, 5, 3\)"):
        load_volume(four_d / "imagesTr" / "a.nii.gz", channels=channels)
    files = [write(tmp_path / f"x_{channel}.nii.gz", VOXELS[channel]) for channel in range(3)]
    with pytest.raises(CaseError, match=f"one of {channels} channels, got 3 files"):
        load_volume(files, channels=channels)


def test_channels_on_other_grids_are_refused(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 2
    files = [write(tmp_path / "x_0.nii.gz", VOXELS[0]), write(tmp_path / "x_1.nii.gz", VOXELS[1], moved)]
    with pytest.raises(CaseError, match=r"x_1.nii.gz must lie on the grid of the first channel, got corners 2 mm"):
        load_volume(files, channels=2)


def test_a_file_cut_within_its_channels_is_refused(four_d: Path) -> None:
    path = four_d / "imagesTr" / "whole.nii"
    nib.save(nib.load(four_d / "imagesTr" / "a.nii.gz"), path)
    path.write_bytes(path.read_bytes()[: -4 * 6 * 7 * 5])
    with pytest.raises(CaseError, match=r"must hold the .* bytes that its header claims"):
        load_volume(path, channels=3)
