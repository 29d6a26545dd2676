"""A bad file is refused by its header alone; `tests/cohort/test_bad_inputs.py` has the many ways to be bad."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_volumes import AFFINE, DATATYPE, MAGIC, UNITS, VOXELS, nifti, put, shorts, written

from unoise_monai.data.headers import check_header, read_nifti
from unoise_monai.data.reading import CaseError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
def test_what_a_header_says(tmp_path: Path, kind: type) -> None:
    suffix = ".hdr" if kind is nib.Nifti1Pair else ".nii"
    path = tmp_path / f"scan{suffix}"
    nib.save(kind(VOXELS, AFFINE), path)
    header = read_nifti(path)
    assert header.shape == VOXELS.shape
    assert header.voxel_bytes == 2
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-5)
    assert header.data.read_bytes()[header.offset :] == VOXELS.tobytes(order="F")
    check_header(path)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.NII", "scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_good_files_pass(tmp_path: Path, name: str) -> None:
    check_header(written(tmp_path, name.lower()).rename(tmp_path / name), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({MAGIC: b"XXXX"}, r"is unreadable: it has no NIfTI header"),
        ({UNITS: b"\1"}, r"must give its lengths in mm, got meter"),
        ({DATATYPE: shorts(128, 24)}, r"must hold one real number a voxel"),
        ({108: b"\0\0\0\x7f"}, r"must have its voxels soon after its header"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[int, bytes], says: str) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(put(nifti(), changes))
    with pytest.raises(CaseError, match=f"^file {path} {says}"):
        check_header(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"scan.nii is missing$"):
        check_header(tmp_path / "scan.nii")
    with pytest.raises(CaseError, match=r"must be a regular file, got a folder$"):
        check_header(tmp_path)
    with pytest.raises(CaseError, match=r"must be a regular file, got a pipe or device$"):
        check_header(Path("/dev/zero"))
    (tmp_path / "scan.png").touch()
    with pytest.raises(CaseError, match=r"must be a volume, of .nii, .* got another extension"):
        check_header(tmp_path / "scan.png")


def test_real_volumes() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"real data is not there: {SHARED}")
    paths = [*sorted(SHARED.glob("*/images*/*.nii.gz"))[::10], *SHARED.glob("*/*.nii.gz")]
    assert len(paths) > 20
    for path in paths:
        check_header(path, (1.0, 1.0, 1.0))
