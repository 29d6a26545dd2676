"""Small volumes and a small Decathlon folder, on a grid as scanners make them."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_slices import write_series
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

# Oblique, anisotropic, left-handed, away from the origin.
AFFINE = from_matvec(euler2mat(0.5, -0.3, 0.2) @ np.diag([0.9, 1.2, -2.0]), [41.3, -20.7, 33.1])
SHAPE = (14, 12, 8)


@pytest.fixture
def affine() -> np.ndarray:
    return AFFINE.copy()


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Real data by its name; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = Path(__file__).resolve().parents[3] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"real data is not there: {path}")
        return path

    return find


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes an array as NIfTI on the oblique grid."""

    def write_volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write_volume


@pytest.fixture
def decathlon(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Three labelled cases (not in alphabetical order), two unlabelled, and macOS's junk beside them."""
    folder = tmp_path / "Task04_Hippocampus"
    rng = np.random.default_rng(0)
    names = ["hippocampus_003", "hippocampus_001", "hippocampus_002"]
    for name in names:
        label = np.zeros(SHAPE, np.uint8)
        label[4:9, 4:8, 2:6] = 1
        label[4:9, 4:8, 5:6] = 2
        write(folder / f"imagesTr/{name}.nii.gz", rng.normal(100, 20, SHAPE).astype(np.float32))
        write(folder / f"labelsTr/{name}.nii.gz", label)
        (folder / f"imagesTr/._{name}.nii.gz").write_bytes(b"\0\5\26\7 Mac OS X")
    for name in ("hippocampus_004", "hippocampus_005"):
        write(folder / f"imagesTs/{name}.nii.gz", rng.normal(100, 20, SHAPE).astype(np.float32))
        (folder / f"imagesTs/._{name}.nii.gz").write_bytes(b"\0\5\26\7 Mac OS X")
    content = {
        "name": "Hippocampus",
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/hippocampus_004.nii.gz", "./imagesTs/hippocampus_005.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A DICOM series of 16 oblique slices, 2 mm apart, with a bright vessel through all of them."""
    voxels = np.random.default_rng(0).normal(200, 5, (16, 20, 24)).astype(np.int16)
    voxels[:, 8:12, 10:14] += 400
    return write_series(tmp_path / "series", voxels)[0].parent
