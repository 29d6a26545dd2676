"""A file is read as it is stored, to its last byte."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bad_volumes import PIXDIM, TURN, VOXELS, floats, nifti, put, written

from unoise_monai.data.reading import check_gzip, load_volume, said

Write = Callable[..., Path]


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".NII", ".img"])
def test_as_nibabel_reads_it(tmp_path: Path, write: Write, affine: np.ndarray, extension: str) -> None:
    path = write(tmp_path / f"scan{extension}", VOXELS)
    volume = load_volume(path.with_suffix(".hdr") if extension == ".img" else path)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume.numpy(), VOXELS)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    volume = load_volume(written(tmp_path, name))
    np.testing.assert_array_equal(volume.numpy(), VOXELS)
    lps = TURN @ np.diag([0.9, 1.2, 1.7])
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-1, -1, 1]) @ lps, atol=1e-6)


def test_the_affine_is_the_stored_one(tmp_path: Path, affine: np.ndarray) -> None:
    """Also where pixdim tells other voxel sizes, from which MONAI would conclude that the q-form is meant."""
    (tmp_path / "scan.nii").write_bytes(put(nifti(affine=affine), {PIXDIM + 4: floats(0.91)}))
    stored = nib.load(tmp_path / "scan.nii")
    assert np.abs(stored.get_qform() - stored.affine).max() > 1e-3
    np.testing.assert_array_equal(load_volume(tmp_path / "scan.nii").affine, stored.affine)


@pytest.mark.parametrize("kind", ["c8", "c16", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_one_real_number_a_voxel(tmp_path: Path, write: Write, kind: str) -> None:
    with pytest.raises(ValueError, match="must hold one real number a voxel"):
        load_volume(write(tmp_path / "scan.nii", np.zeros(VOXELS.shape, kind)))


def test_a_flipped_bit_shows(tmp_path: Path) -> None:
    """Voxels that were changed on their way, which nibabel alone would hand out."""
    content = bytearray(gzip.compress(nifti(), compresslevel=0))
    content[-500] ^= 1
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    assert not np.array_equal(np.asarray(nib.load(path).dataobj), VOXELS)
    for read in (check_gzip, load_volume):
        with pytest.raises(OSError, match="CRC check failed"):
            read(path)


def test_said() -> None:
    error = RuntimeError("/ITK/Modules/x.cxx:490:\nITK ERROR: MetaImageIO(0x5612ab): File cannot  be read\n")
    assert said(error) == "ITK ERROR: MetaImageIO: File cannot be read"
    assert said(ValueError("as it is")) == "as it is"
