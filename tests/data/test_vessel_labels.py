"""Semi-automatic labels lie on their image's grid and say what they are."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import voxel_sizes

from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, check_item
from unoise_monai.data.vessels import label_vessels, vessel_label

SIZE = (30, 26, 18)

Write = Callable[..., Path]


@pytest.fixture
def angiogram() -> np.ndarray:
    """A tube of 2.2 mm along x on the oblique grid, in noise."""
    y, z = (index - side // 2 for index, side in zip(np.indices(SIZE)[1:], SIZE[1:], strict=True))
    away = np.hypot(1.2 * y, 2.0 * z)
    share = np.clip(0.5 - (away - 2.2) / 1.5, 0, 1)
    return (200 + 400 * share + np.random.default_rng(0).normal(0, 8, SIZE)).astype(np.float32)


def test_a_label_beside_its_volume(tmp_path: Path, write: Write, angiogram: np.ndarray, affine: np.ndarray) -> None:
    image = write(tmp_path / "sub-01/anat/sub-01_angio.nii.gz", angiogram)
    before = image.read_bytes()
    case = {"case": "sub-01_angio", "image": str(image)}
    path = label_vessels(case)
    assert path == image.parent / "sub-01_angio_desc-semiauto_mask.nii.gz"
    assert image.read_bytes() == before
    check_item({**case, "label": str(path)})
    label = nib.load(path)
    np.testing.assert_allclose(label.affine, affine, atol=1e-5)
    assert label.get_data_dtype() == np.uint8
    assert int(label.header["qform_code"]) == int(label.header["sform_code"]) == 1
    expected = vessel_label(angiogram, voxel_sizes(nib.load(image).affine).tolist())
    assert expected.any()
    np.testing.assert_array_equal(np.asarray(label.dataobj), expected)
    np.testing.assert_allclose(SimpleITK.ReadImage(str(path)).GetSpacing(), voxel_sizes(affine), atol=1e-5)


def test_a_label_says_that_it_is_semi_automatic(tmp_path: Path, write: Write, angiogram: np.ndarray) -> None:
    path = label_vessels({"image": str(write(tmp_path / "scan.nii.gz", angiogram))})
    assert nib.load(path).header["descrip"].item().decode() == "semi-automatic vessel label, not hand-made"
    note = json.loads((tmp_path / "scan_desc-semiauto_mask.json").read_text(encoding="utf-8"))
    assert note["Manual"] is False
    assert "Semi-automatic" in note["Description"]
    assert note["Sources"] == ["scan.nii.gz"]
    assert note["GeneratedBy"][0]["Name"] == "unoise-monai"
    assert "HessianToObjectnessMeasure" in note["Filter"]
    assert note["Parameters"]["sigmas_mm"] == [0.4, 2.5]
    assert note["Parameters"]["island_mm3"] == 5.0


def test_no_file_is_replaced(tmp_path: Path, write: Write, angiogram: np.ndarray) -> None:
    image = write(tmp_path / "scan.nii.gz", angiogram)
    corrected = tmp_path / "scan_desc-semiauto_mask.nii.gz"
    corrected.write_bytes(b"by hand")
    with pytest.raises(FileExistsError, match=rf"must not take the place of a file, got {corrected}"):
        label_vessels({"image": str(image)})
    assert corrected.read_bytes() == b"by hand"


@pytest.mark.parametrize("kind", ["zero", "flat", "blob", "two-dimensional", "missing"])
def test_bad_volumes(tmp_path: Path, write: Write, kind: str) -> None:
    voxels = np.zeros(SIZE, np.float32)
    if kind == "blob":
        voxels[10, 10, 8] = 1
    shape = SIZE[:2] if kind == "two-dimensional" else SIZE
    image = tmp_path / "scan.nii.gz"
    if kind != "missing":
        write(image, np.full(shape, 7, np.float32) if kind in ("flat", "two-dimensional") else voxels)
    says = {
        "zero": "must not be constant, got 0 everywhere",
        "flat": "must not be constant, got 7 everywhere",
        "blob": "must show vessels to label, got none",
        "two-dimensional": r"must be a 3-D volume, got shape \(30, 26\)",
        "missing": "is missing",
    }
    with pytest.raises(CaseError, match=rf"case scan: image file {image} {says[kind]}"):
        label_vessels({"image": str(image)})
    assert [file.name for file in tmp_path.iterdir() if file != image] == []


def test_the_label_of_a_series_lies_beside_its_folder(
    tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(series.iterdir())
    monkeypatch.chdir(series)
    path = label_vessels({"image": "."})
    assert path == tmp_path / "series_desc-semiauto_mask.nii.gz"
    assert sorted(series.iterdir()) == files
    check = {"case": "series", "image": str(series), "label": str(path)}
    loaded = LoadCased(["image", "label"], labels=2)(check)
    assert loaded["label"].shape == loaded["image"].shape
    # The vessel of 4 by 4 voxels through 16 slices.
    assert 0.7 * 256 < loaded["label"].sum() < 1.3 * 256
