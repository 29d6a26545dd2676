"""A volume is read as it is stored, to its last byte; a bad one is refused by the case's and the file's names."""

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bad_volumes import PIXDIM, TURN, VOXELS, floats, nifti, put, written
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad

from unoise_monai.data.cases import Case
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import (
    CaseCompose,
    LoadCased,
    case_name,
    check_item,
    check_same_grid,
    grid_of,
    load_volume,
)

Write = Callable[..., Path]
LOAD = LoadCased(["image", "label"], labels=3)
SHAPE = (30, 12, 18)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".NII", ".img"])
def test_as_nibabel_reads_it(tmp_path: Path, write: Write, affine: np.ndarray, extension: str) -> None:
    path = write(tmp_path / f"scan{extension}", VOXELS)
    path = path.with_suffix(".hdr") if extension == ".img" else path
    volume = load_volume(path)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume.numpy(), VOXELS)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert volume.meta["filename_or_obj"] == str(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    volume = load_volume(written(tmp_path, name))
    np.testing.assert_array_equal(volume.numpy(), VOXELS)
    lps = TURN @ np.diag([0.9, 1.2, 1.7])
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-1, -1, 1]) @ lps, atol=1e-6)


def test_the_affine_is_the_stored_one(tmp_path: Path, affine: np.ndarray) -> None:
    """Also where pixdim has other voxel sizes, from which MONAI would conclude that the q-form is meant."""
    (tmp_path / "scan.nii").write_bytes(put(nifti(affine=affine), {PIXDIM + 4: floats(0.91)}))
    stored = nib.load(tmp_path / "scan.nii")
    assert np.abs(stored.get_qform() - stored.affine).max() > 1e-3
    np.testing.assert_array_equal(load_volume(tmp_path / "scan.nii").affine, stored.affine)


def test_a_flipped_bit_shows(tmp_path: Path) -> None:
    """Voxels that were changed on their way, which nibabel alone would hand out."""
    content = bytearray(gzip.compress(nifti(), compresslevel=0))
    content[-500] ^= 1
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    assert not np.array_equal(np.asarray(nib.load(path).dataobj), VOXELS)
    with pytest.raises(CaseError, match=r"scan.nii.gz is unreadable: CRC check failed"):
        load_volume(path)


def test_a_file_names_its_case() -> None:
    assert case_name("/data/pancreas_001.nii.gz") == "pancreas_001"
    assert case_name("scan.v2.NII") == "scan.v2"
    assert case_name("1.2.840.dcm") == "1.2.840"
    assert case_name("scan.nrrd") == case_name(Path("scan.mha")) == case_name("scan") == "scan"
    for path in (".nii.gz", "/"):
        with pytest.raises(CaseError, match="path must name a case, got"):
            case_name(path)


def test_a_folder_names_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = tmp_path / "series.dcm"
    series.mkdir()
    assert case_name(f"{series}/") == "series.dcm"
    assert case_name(series / "..") == tmp_path.name
    monkeypatch.chdir(series)
    assert case_name(".") == "series.dcm"


@pytest.fixture
def case(tmp_path: Path, write: Write) -> dict[str, str]:
    rng = np.random.default_rng(0)
    image = write(tmp_path / "images/scan_7.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
    label = write(tmp_path / "labels/scan_7.nii.gz", rng.integers(0, 3, SHAPE).astype(np.uint8))
    return {"case": "scan_7", "image": str(image), "label": str(label)}


def test_good_cases_pass(case: dict[str, str], affine: np.ndarray) -> None:
    check_item(case)
    check_item({key: case[key] for key in ("case", "image")})
    loaded = LOAD(case)
    for key in ("image", "label"):
        assert isinstance(loaded[key], MetaTensor)
        assert loaded[key].shape == (1, *SHAPE)
        assert loaded[key].dtype == torch.float32
        np.testing.assert_allclose(loaded[key].affine, affine, atol=1e-5)
    assert case["image"].endswith("scan_7.nii.gz"), "the caller's dictionary stays as it was"
    unlabelled = LOAD({"image": case["image"]})
    assert unlabelled["case"] == "scan_7"
    assert "label" not in unlabelled


def test_a_case_with_a_problem_is_refused_when_it_is_loaded() -> None:
    item = Case("scan", (), "a/scan.nii", problem="must lie elsewhere").item()
    for check in (check_item, LOAD):
        with pytest.raises(CaseError, match=r"^case scan: file a/scan.nii must lie elsewhere$"):
            check(item)


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("fault", ["missing", "cut off", "no gzip", "singular", "no volume", "one slice"])
def test_headers_are_checked_alone_and_on_loading(
    case: dict[str, str], write: Write, affine: np.ndarray, key: str, fault: str
) -> None:
    path = Path(case[key])
    if fault == "missing":
        path.unlink()
    elif fault in ("cut off", "no gzip"):
        path.write_bytes(path.read_bytes()[:40] if fault == "cut off" else b"<html>404</html>" * 30)
    elif fault == "singular":
        affine[:, 1] = affine[:, 0]
        write(path, np.ones(SHAPE, np.float32), affine)
    else:
        write(path, np.ones((6, 5, 4, 2, 2) if fault == "no volume" else (6, 5, 1), np.float32))
    reasons = {"missing": "is missing", "cut off": "is unreadable: ", "no gzip": "is unreadable: "}
    reason = reasons | {"singular": "must have an affine whose axes"}
    for check in (check_item, LOAD):
        with pytest.raises(
            CaseError, match=rf"^case scan_7: {key} file {path} {reason.get(fault, 'must be a 3-D volume')}"
        ):
            check(case)


def test_truncated_voxels_show_on_loading(case: dict[str, str]) -> None:
    path = Path(case["image"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    check_item(case)
    with pytest.raises(CaseError, match=r"case scan_7: image file .*scan_7.nii.gz is unreadable: "):
        LOAD(case)


def test_pipes_and_empty_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan_7.nii.gz")
    with pytest.raises(CaseError, match=r"case scan_7: image file .* must be a regular file, got a pipe"):
        LOAD({"image": str(tmp_path / "scan_7.nii.gz")})
    (tmp_path / "series").mkdir()
    with pytest.raises(CaseError, match=r"case series: image folder .*series must hold one DICOM series, got 0"):
        LOAD({"image": str(tmp_path / "series")})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_are_finite(case: dict[str, str], write: Write, value: float) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[1, 2, 3:5] = value
    for key in ("image", "label"):
        write(Path(case[key]), voxels)
        with pytest.raises(CaseError, match=rf"case scan_7: {key} file .*must hold finite voxels, got 2 NaN or inf"):
            LoadCased([key], labels=3)(case)


def test_intensities(case: dict[str, str], write: Write) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[1, 2, 3] = 1e20
    write(Path(case["image"]), voxels)
    with pytest.raises(CaseError, match=r"image file .* must hold intensities up to 1e\+12, got 1 to 1e\+20"):
        LOAD(case)


@pytest.mark.parametrize("value", [3.0, -1.0, 0.5])
def test_label_values_belong_to_the_task(case: dict[str, str], write: Write, value: float) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[0, 0, 0] = value
    write(Path(case["label"]), voxels)
    rule = rf"case scan_7: label file {case['label']} must hold the task's values 0 to 2, got \[{value}\]"
    with pytest.raises(CaseError, match=rule):
        LOAD(case)


def test_empty_foreground_is_reported(case: dict[str, str], write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        LOAD(case)
        assert caplog.messages == []
        write(Path(case["label"]), np.zeros(SHAPE, np.uint8))
        assert LOAD(case)["label"].sum() == 0
    assert caplog.messages == ["case scan_7: the label has no foreground"]


def moved(affine: np.ndarray, change: str) -> np.ndarray:
    result = affine.copy()
    if change == "shifted":
        result[:3, 3] += 0.2
    elif change == "turned":
        # Every entry changes by less than 0.01, the far corner by more than a tenth of a voxel.
        angle = 0.006
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        result[:3, :3] = turn @ result[:3, :3]
    elif change == "mirrored":
        result[:3, 0] *= -1
    elif change == "rounded":
        result = np.round(result, 4)
    return result


@pytest.mark.parametrize("change", ["shifted", "turned", "mirrored", "shape", "rounded"])
def test_image_and_label_share_their_grid(case: dict[str, str], write: Write, affine: np.ndarray, change: str) -> None:
    shape = (30, 12, 17) if change == "shape" else SHAPE
    write(Path(case["label"]), np.ones(shape, np.uint8), moved(affine, change))
    reason = r"of shape \(30, 12, 18\), got shape \(30, 12, 17\)" if change == "shape" else r"got corners .* mm apart"
    for check in (check_item, LOAD):
        # Rounded affines are the same grid.
        if change == "rounded":
            check(case)
            continue
        name = f"case scan_7: label file {case['label']}"
        with pytest.raises(CaseError, match=rf"^{name} must lie on the grid of the image, {reason}"):
            check(case)


def test_the_limit_of_a_grid_is_in_voxels(affine: np.ndarray) -> None:
    volume = MetaTensor(torch.zeros(1, 5, 6, 7), affine=affine)
    near = affine.copy()
    near[:3, 3] += 0.05 * affine[:3, 0]
    check_same_grid("map", (volume.shape[1:], near), "scan", grid_of(volume), limit=0.06)
    with pytest.raises(ValueError, match=r"^map must lie on the grid of scan, got corners 0.045 mm apart"):
        check_same_grid("map", (volume.shape[1:], near), "scan", grid_of(volume), limit=0.04)
    with pytest.raises(ValueError, match="mm apart"):
        check_same_grid("map", (volume.shape[1:], near * np.nan), "scan", grid_of(volume))


def test_errors_come_out_of_a_chain(tmp_path: Path) -> None:
    item = {"image": str(tmp_path / "scan_7.nii.gz")}
    with pytest.raises(RuntimeError, match="applying transform"):
        Compose([LOAD])(item)
    with pytest.raises(CaseError, match=r"case scan_7: image file .* is missing"):
        CaseCompose([LOAD])(item)
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        CaseCompose([Lambdad("image", func=int)])(item)
    assert isinstance(caught.value.__cause__, Exception)
    assert not isinstance(caught.value, CaseError)
