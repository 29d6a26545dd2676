"""Volumes of a report are read as they lie in space, or refused by an error that the report knows."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unoise_monai.report.volumes import UNREADABLE, read_map, read_scan

VOXELS = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
AFFINE = np.array([[-1.9, 0.3, 0.1, 20], [0.2, 2.1, -0.4, -30], [0.1, 0.2, 3.0, 12], [0, 0, 0, 1.0]])


def volume(path: Path, damage: dict[int, bytes] | None = None) -> Path:
    """A file with other bytes at some places of its header."""
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), path)
    content = bytearray(path.read_bytes())
    for place, other in (damage or {}).items():
        content[place : place + len(other)] = other
    path.write_bytes(content)
    return path


def test_voxels_and_affine(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii")
    for read in (read_map, read_scan):
        voxels, affine = read(path)
        np.testing.assert_array_equal(voxels, VOXELS)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_a_scan_lies_where_its_s_form_says(tmp_path: Path) -> None:
    """Also where the voxel sizes of its header are others, as the run has read it."""
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(np.diag([2.0, 2.1, 3.0, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    _, affine = read_scan(tmp_path / "a.nii")
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_a_scan_is_made_when_it_is_read_and_goes_again(tmp_path: Path) -> None:
    folders = []

    def make(folder: Path) -> Path:
        folders.append(folder)
        return volume(folder / "DOE.nii")

    voxels, affine = read_scan(make)
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert [folder.exists() for folder in folders] == [False]


@pytest.mark.parametrize("read", [read_map, read_scan])
@pytest.mark.parametrize(
    "damage",
    [
        {70: b"\x0f\x27"},  # the type of the voxels
        {70: b"\x80\x00"},  # colours
        {40: b"\xff\xff"},  # how many dimensions
        {42: b"\xff\x7f\xff\x7f\xff\x7f"},  # more voxels than any memory holds
        {42: b"\x00\x00"},  # none
        {108: b"\x00\x00\xc0\x7f"},  # where the voxels begin: NaN
        {108: b"\x00\x00\x80\xff"},
        {112: b"\x00\x00\xc0\x7f", 116: b"\x00\x00\xc0\x7f"},  # how they are scaled
        {0: b"\x00\x00\x00\x00"},  # how long the header is
        {344: b"none"},  # what kind of file it is
        {352: b"\x00\x00\xc0\x7f"},  # a voxel
    ],
    ids=str,
)
def test_a_damaged_header_is_known(read: object, damage: dict[int, bytes], tmp_path: Path) -> None:
    # What of this one reader mends, no report needs to refuse.
    try:
        voxels, _ = read(volume(tmp_path / "a.nii", damage))  # type: ignore[operator]
    except UNREADABLE:
        return
    assert np.isfinite(voxels).all()


def test_a_type_that_no_reader_knows_is_refused(tmp_path: Path) -> None:
    for read in (read_map, read_scan):
        with pytest.raises(UNREADABLE):
            read(volume(tmp_path / "a.nii", {70: b"\x0f\x27"}))


@pytest.mark.parametrize("end", [0, 4, 100, 347, 352, 400])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.hdr"])
def test_a_truncated_file_is_known(name: str, end: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(volume(tmp_path / "whole.nii").read_bytes()[:end])
    for read in (read_map, read_scan):
        with pytest.raises(UNREADABLE):
            read(path)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 2), (0, 4, 5)])
def test_only_volumes(shape: tuple[int, ...], tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), AFFINE), tmp_path / "a.nii")
    with pytest.raises(UNREADABLE):
        read_map(tmp_path / "a.nii")
