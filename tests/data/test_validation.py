"""Bad data is refused with the case and the file in the message."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad

from unoise_monai.data.reading import CaseCompose, CaseError, LoadCased, case_name, check_grids

Write = Callable[..., Path]


@pytest.fixture
def case(tmp_path: Path, write: Write) -> dict[str, str]:
    rng = np.random.default_rng(0)
    image = write(tmp_path / "images/scan_7.nii.gz", rng.normal(size=(30, 12, 18)).astype(np.float32))
    label = write(tmp_path / "labels/scan_7.nii.gz", rng.integers(0, 3, (30, 12, 18)).astype(np.uint8))
    return {"case": "scan_7", "image": str(image), "label": str(label)}


def corrupt(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    header = bytearray(gzip.decompress(whole))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "no gzip":
        path.write_bytes(b"<html>404</html>" * 30)
    elif kind == "wrong magic":
        header[344:348] = b"XXXX"
        path.write_bytes(gzip.compress(bytes(header)))
    elif kind == "unknown dtype":
        header[70:72] = b"\xff\x7f"
        path.write_bytes(gzip.compress(bytes(header)))
    elif kind == "broken deflate":
        path.write_bytes(whole[:12] + b"\xff" * 48 + whole[60:])
    elif kind == "cut in the header":
        path.write_bytes(whole[:40])
    else:
        path.write_bytes(whole[: len(whole) * 3 // 4])


BROKEN_HEADERS = ["empty", "no gzip", "wrong magic", "unknown dtype", "broken deflate", "cut in the header"]


def test_a_file_names_its_case() -> None:
    assert case_name("/data/pancreas_001.nii.gz") == "pancreas_001"
    assert case_name("scan.v2.NII") == "scan.v2"
    assert case_name("1.2.840.dcm") == "1.2.840"
    assert case_name("scan.nrrd") == case_name(Path("scan.mha")) == case_name("scan") == "scan"


def test_a_folder_names_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = tmp_path / "series.dcm"
    series.mkdir()
    assert case_name(f"{series}/") == "series.dcm"
    assert case_name(series / "..") == tmp_path.name
    monkeypatch.chdir(series)
    assert case_name(".") == "series.dcm"


def test_refuses_a_path_without_a_name() -> None:
    for path in (".nii.gz", "/"):
        with pytest.raises(CaseError, match="path must name a case, got"):
            case_name(path)


def test_good_cases_pass(case: dict[str, str], affine: np.ndarray) -> None:
    check_grids(case)
    check_grids({key: case[key] for key in ("case", "image")})
    loaded = LoadCased(["image", "label"], labels=3)(case)
    for key in ("image", "label"):
        assert isinstance(loaded[key], MetaTensor)
        assert loaded[key].shape == (1, 30, 12, 18)
        assert loaded[key].dtype == torch.float32
        np.testing.assert_allclose(loaded[key].affine, affine, atol=1e-5)
    assert case["image"].endswith("scan_7.nii.gz"), "the caller's dictionary stays as it was"
    unlabelled = LoadCased(["image", "label"], labels=3)({"image": case["image"]})
    assert unlabelled["case"] == "scan_7"
    assert "label" not in unlabelled


@pytest.mark.parametrize("key", ["image", "label"])
def test_missing_files(case: dict[str, str], key: str) -> None:
    Path(case[key]).unlink()
    for check in (check_grids, LoadCased(["image", "label"], labels=3)):
        with pytest.raises(CaseError, match=rf"case scan_7: {key} file {case[key]} is missing"):
            check(case)


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
@pytest.mark.parametrize("key", ["image", "label"])
def test_unreadable_headers(case: dict[str, str], key: str, kind: str) -> None:
    corrupt(kind, Path(case[key]))
    for check in (check_grids, LoadCased(["image", "label"], labels=3)):
        with pytest.raises(CaseError, match=rf"case scan_7: {key} file {case[key]} is unreadable: "):
            check(case)


def test_truncated_voxels_show_on_loading(case: dict[str, str]) -> None:
    corrupt("truncated", Path(case["image"]))
    check_grids(case)
    with pytest.raises(CaseError, match=r"case scan_7: image file .*scan_7.nii.gz is unreadable: "):
        LoadCased(["image"], labels=3)(case)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan_7.nii.gz")
    with pytest.raises(CaseError, match=r"case scan_7: image file .* must be a file or a folder of slices, got a pipe"):
        LoadCased(["image"], labels=2)({"image": str(tmp_path / "scan_7.nii.gz")})


@pytest.mark.parametrize("key", ["image", "label"])
def test_volumes_have_a_place_in_space(case: dict[str, str], write: Write, affine: np.ndarray, key: str) -> None:
    affine[:, 1] = affine[:, 0]
    write(Path(case[key]), np.ones((30, 12, 18), np.float32), affine)
    for check in (check_grids, LoadCased([key], labels=3)):
        with pytest.raises(CaseError, match=rf"case scan_7: {key} file {case[key]} must have an affine whose axes"):
            check(case)


def test_intensities_stay_within_arithmetic(case: dict[str, str], write: Write) -> None:
    voxels = np.ones((30, 12, 18), np.float32)
    voxels[1, 2, 3] = 1e20
    write(Path(case["image"]), voxels)
    with pytest.raises(CaseError, match=r"must hold intensities up to 1e\+12, got 1 to 1e\+20"):
        LoadCased(["image"], labels=3)(case)


def test_messages_are_one_line(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "scan_7.nii", np.ones((30, 12, 18), np.float32))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CaseError) as caught:
        LoadCased(["image"], labels=2)({"image": str(path)})
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    with pytest.raises(CaseError, match=r"case series: image file .*series is unreadable: "):
        LoadCased(["image"], labels=2)({"image": str(tmp_path / "series")})


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (6, 5, 4, 1), (6, 5), (6, 5, 1)])
def test_only_volumes(tmp_path: Path, write: Write, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "scan_7.nii.gz", np.ones(shape, np.float32))
    for check in (check_grids, LoadCased(["image"], labels=3)):
        with pytest.raises(CaseError, match=r"case scan_7: image file .*scan_7.nii.gz must be a 3-D volume, got shape"):
            check({"case": "scan_7", "image": str(path)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_are_finite(case: dict[str, str], write: Write, value: float) -> None:
    voxels = np.ones((30, 12, 18), np.float32)
    voxels[1, 2, 3:5] = value
    for key in ("image", "label"):
        write(Path(case[key]), voxels)
        with pytest.raises(CaseError, match=rf"case scan_7: {key} file .*must hold finite voxels, got 2 NaN or inf"):
            LoadCased([key], labels=3)(case)


@pytest.mark.parametrize("value", [3.0, -1.0, 0.5])
def test_label_values_belong_to_the_task(case: dict[str, str], write: Write, value: float) -> None:
    voxels = np.ones((30, 12, 18), np.float32)
    voxels[0, 0, 0] = value
    write(Path(case["label"]), voxels)
    said = rf"case scan_7: label file {case['label']} must hold the task's values 0 to 2, got \[{value}\]"
    with pytest.raises(CaseError, match=said):
        LoadCased(["image", "label"], labels=3)(case)


def test_empty_foreground_is_reported(case: dict[str, str], write: Write, caplog: pytest.LogCaptureFixture) -> None:
    load = LoadCased(["image", "label"], labels=3)
    with caplog.at_level(logging.WARNING):
        load(case)
        assert caplog.messages == []
        write(Path(case["label"]), np.zeros((30, 12, 18), np.uint8))
        assert load(case)["label"].sum() == 0
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


@pytest.mark.parametrize("change", ["shifted", "turned", "mirrored"])
def test_image_and_label_share_their_grid(case: dict[str, str], write: Write, affine: np.ndarray, change: str) -> None:
    write(Path(case["label"]), np.ones((30, 12, 18), np.uint8), moved(affine, change))
    for check in (check_grids, LoadCased(["image", "label"], labels=3)):
        with pytest.raises(CaseError, match=rf"case scan_7: label file {case['label']} must lie on .* mm apart"):
            check(case)


def test_rounded_affines_are_the_same_grid(case: dict[str, str], write: Write, affine: np.ndarray) -> None:
    write(Path(case["label"]), np.ones((30, 12, 18), np.uint8), moved(affine, "rounded"))
    check_grids(case)
    LoadCased(["image", "label"], labels=3)(case)


def test_image_and_label_share_their_shape(case: dict[str, str], write: Write) -> None:
    write(Path(case["label"]), np.ones((30, 12, 17), np.uint8))
    for check in (check_grids, LoadCased(["image", "label"], labels=3)):
        with pytest.raises(CaseError, match=r"case scan_7: label .* got shape \(30, 12, 17\) for .* \(30, 12, 18\)"):
            check(case)


def test_errors_come_out_of_a_chain(tmp_path: Path) -> None:
    item = {"image": str(tmp_path / "scan_7.nii.gz")}
    steps = [LoadCased(["image"], labels=2)]
    with pytest.raises(RuntimeError, match="applying transform"):
        Compose(steps)(item)
    with pytest.raises(CaseError, match=r"case scan_7: image file .* is missing"):
        CaseCompose(steps)(item)
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        CaseCompose([Lambdad("image", func=int)])(item)
    assert isinstance(caught.value.__cause__, Exception)
    assert not isinstance(caught.value, CaseError)
