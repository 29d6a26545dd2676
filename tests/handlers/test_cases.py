"""Each case has one name, one folder, and maps that say where they come from."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from unoise_monai.handlers.savers import CaseFolders, item_volume, label_voxels, output_items, to_numpy

AFFINE = torch.diag(torch.tensor([0.7, -1.1, 2.5, 1.0], dtype=torch.float64))


def volume(path: Path, values: torch.Tensor | None = None) -> MetaTensor:
    data = torch.rand(1, 2, 3, 4) if values is None else values
    return MetaTensor(data, affine=AFFINE, meta={"filename_or_obj": str(path)})


def engine(output: object) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(output=output))


def test_folders_are_one_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = CaseFolders("out")
    source = tmp_path / "a" / "scan.nii.gz"
    assert folders.claim(volume(source)) == ("scan", Path("out/scan"), source)
    # The same file again, by another spelling, is the same case.
    assert folders.claim(volume(Path("a/scan.nii.gz")))[0] == "scan"
    with pytest.raises(ValueError, match="case names must differ within a run, got 'scan' from"):
        folders.claim(volume(tmp_path / "b" / "scan.nii.gz"))
    assert CaseFolders("out").claim(volume(tmp_path / "b" / "scan.nii.gz"))[0] == "scan"


def test_items_are_dictionaries_in_a_list() -> None:
    items = [{"seg": 1}, {"seg": 2}]
    assert output_items(engine(items)) is items
    for output in ({"seg": 1}, [torch.zeros(1)], None):
        with pytest.raises(TypeError, match="must be a list of dictionaries, one an item"):
            output_items(engine(output))


def test_volumes_know_their_file() -> None:
    good = volume(Path("a.nii.gz"))
    assert item_volume({"seg": good}, "seg") is good
    with pytest.raises(KeyError, match=r"'seg' must be in the engine's output, got keys \['pred'\]"):
        item_volume({"pred": good}, "seg")
    for bad in (torch.zeros(1, 2, 3, 4), MetaTensor(torch.zeros(1, 2, 3, 4)), 3):
        with pytest.raises(TypeError, match="'seg' must be a MetaTensor whose meta holds 'filename_or_obj'"):
            item_volume({"seg": bad}, "seg")
    for shape in ((2, 3, 4), (2, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"'seg' must be of shape \(1, X, Y, Z\), got"):
            item_volume({"seg": volume(Path("a.nii.gz"), torch.zeros(shape))}, "seg")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_voxels_and_affine_reach_numpy(dtype: torch.dtype) -> None:
    voxels, affine = to_numpy(volume(Path("a.nii.gz"), torch.arange(24).reshape(1, 2, 3, 4).to(dtype)))
    np.testing.assert_array_equal(voxels, np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(affine, AFFINE.numpy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_that_are_integers_stay_as_they_are(dtype: torch.dtype) -> None:
    stored = torch.arange(24).reshape(1, 2, 3, 4).to(dtype)
    labels = label_voxels(volume(Path("a.nii.gz"), stored), "seg")
    assert labels.dtype == stored.numpy().dtype
    np.testing.assert_array_equal(labels, stored.numpy()[0])


@pytest.mark.parametrize(
    ("highest", "lowest", "expected"),
    [
        (2, 0, np.uint8),
        (255, 0, np.uint8),
        (256, 0, np.uint16),
        (127, -1, np.int8),
        (128, -1, np.int16),
        (70_000, 0, np.uint32),
        (2**24, -(2**24), np.int32),
    ],
)
def test_labels_that_are_floats_get_the_smallest_type(highest: int, lowest: int, expected: type) -> None:
    stored = torch.zeros(1, 2, 3, 4)
    stored[0, 0, 0, 0], stored[0, 1, 2, 3] = highest, lowest
    labels = label_voxels(volume(Path("a.nii.gz"), stored), "seg")
    assert labels.dtype == expected
    np.testing.assert_array_equal(labels, stored.numpy()[0])


@pytest.mark.parametrize("bad", [0.5, float("nan"), float("inf"), -float("inf"), 2.0**25, -(2.0**25)])
def test_labels_are_whole_numbers(bad: float) -> None:
    stored = torch.ones(1, 2, 2, 2)
    stored[0, 1, 0, 1] = bad
    with pytest.raises(ValueError, match="'seg' must hold class indices, whole numbers of at most 16777216, got"):
        label_voxels(volume(Path("a.nii.gz"), stored), "seg")
