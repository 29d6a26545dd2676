"""Volumes are read as they lie in space, get fewer voxels in the same place, and a header with nothing but a grid."""

import base64
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_slices import SPACING_MM, slices, write_series
from numpy.typing import NDArray

from unoise_monai.report.volumes import UNREADABLE, block_factors, pack, read_map, read_scan, shrink, shrink_affine

RNG = np.random.default_rng(0)
OBLIQUE = np.array([[-1.9, 0.3, 0.1, 40.0], [0.35, 1.4, -0.2, -11.0], [0.2, 0.3, 2.9, 7.0], [0, 0, 0, 1.0]])


def unpack(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def naive(volume: NDArray, factors: tuple[int, int, int], combine: object) -> NDArray:
    size = [-(-n // f) for n, f in zip(volume.shape, factors, strict=True)]
    out = np.zeros(size)
    for index in itertools.product(*map(range, size)):
        block = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        out[index] = combine(volume[block])  # type: ignore[operator]
    return out


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 1, 1), (2, 3, 4), (5, 7, 9)])
def test_blocks_become_voxels(factors: tuple[int, int, int]) -> None:
    volume = RNG.integers(0, 9, (5, 7, 8)).astype(np.uint8)
    before = volume.copy()
    np.testing.assert_allclose(shrink(volume, factors), naive(volume, factors, np.mean), rtol=1e-6)
    np.testing.assert_array_equal(shrink(volume, factors, "max"), naive(volume, factors, np.max))
    np.testing.assert_array_equal(volume, before)
    assert shrink(volume, factors).dtype == np.float32
    assert shrink(volume, factors, "max").dtype == np.uint8


def test_a_blob_stays_where_it_is() -> None:
    factors = (2, 3, 4)
    small, affine = shrink(RNG.random((8, 9, 12)), factors), shrink_affine(OBLIQUE, factors)

    def centre(values: NDArray, to_mm: NDArray) -> NDArray:
        index = np.indices(values.shape).reshape(3, -1)
        return nib.affines.apply_affine(to_mm, (index * values.ravel()).sum(axis=1) / values.sum())

    # Every voxel of an image whose blocks are constant is found again at the same place in mm.
    blocks = small.repeat(2, 0).repeat(3, 1).repeat(4, 2)
    np.testing.assert_allclose(centre(blocks, OBLIQUE), centre(small, affine), atol=1e-5)


@pytest.mark.parametrize("shape", [(512, 512, 300), (200, 200, 200), (5, 4, 3), (4000, 1, 3000), (101, 97, 89)])
def test_at_most_so_many_voxels_and_not_far_fewer(shape: tuple[int, int, int]) -> None:
    most = 8_000_000 if shape[0] != 101 else 1000
    factors = block_factors(shape, np.diag([0.7, 0.7, 1.0, 1]), most)
    left = [-(-size // factor) for size, factor in zip(shape, factors, strict=True)]
    assert np.prod(left) <= most
    assert factors == (1, 1, 1) or np.prod(left) > most / 4


def test_the_smallest_voxels_are_thinned_first() -> None:
    assert block_factors((100, 100, 100), np.diag([1.0, 1.0, 5.0, 1]), 250_000) == (2, 2, 1)
    assert block_factors((1, 1, 100), np.diag([0.1, 0.1, 5.0, 1]), 10) == (1, 1, 10)
    assert block_factors((3, 3, 3), OBLIQUE, 1) == (3, 3, 3)


@pytest.mark.parametrize(
    ("volume", "dtype", "error"),
    [
        (RNG.integers(0, 200, (3, 4, 5)), np.uint8, 0),
        (RNG.integers(-1000, 3000, (3, 4, 5)), np.int16, 0),
        (RNG.integers(-1000, 3000, (3, 4, 5)).astype(np.float32), np.int16, 0),
        (RNG.random((3, 4, 5)).astype(np.float32), np.uint8, 0.5 / 255),
        (RNG.normal(0, 500, (3, 4, 5)).astype(np.float32), np.int16, 3),
        (RNG.integers(0, 10**6, (3, 4, 5)), np.int16, 500),
        (np.full((2, 2, 2), 3.25), np.int16, 0),
        (np.full((2, 2, 2), 1e7), np.int16, 0),
        (np.zeros((2, 2, 2), dtype=bool), np.uint8, 0),
    ],
)
def test_packed_values_come_back(volume: NDArray, dtype: type, error: float) -> None:
    image = unpack(pack(volume, OBLIQUE))
    assert image.get_data_dtype() == dtype
    assert np.abs(image.get_fdata() - volume).max() <= error
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_the_header_is_new() -> None:
    volume = RNG.integers(0, 2, (3, 4, 5))
    header = unpack(pack(volume, OBLIQUE)).header
    assert header["descrip"].item() == b""
    assert len(header.extensions) == 0
    assert header.get_intent()[0] == "none"
    assert unpack(pack(volume, OBLIQUE, classes=True)).header.get_intent()[0] == "label"
    assert pack(volume, OBLIQUE) == pack(volume, OBLIQUE)


Read = Callable[[Path], tuple[NDArray, NDArray]]
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


@pytest.mark.parametrize("read", [read_map, read_scan])
def test_voxels_lie_where_the_s_form_says(read: Read, tmp_path: Path) -> None:
    """Also where the voxel sizes of its header are others, as the run has read it."""
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(np.diag([2.0, 2.1, 3.0, 1]), code=1)
    nib.save(image, tmp_path / "other.nii")
    for path in (volume(tmp_path / "a.nii"), tmp_path / "other.nii"):
        voxels, affine = read(path)
        np.testing.assert_array_equal(voxels, VOXELS)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_a_scan_may_be_the_slices_of_a_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "DOE^JANE")
    for scan in (paths, paths[::-1], paths[0].parent):
        voxels, affine = read_scan(scan)
        np.testing.assert_array_equal(voxels, slices().T)
        np.testing.assert_allclose(affine[:3, 3], [-10, 20, 30], atol=1e-4)
        np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (*SPACING_MM, 2), atol=1e-4)


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
def test_a_damaged_header_is_known(read: Read, damage: dict[int, bytes], tmp_path: Path) -> None:
    # What of this one reader mends, no report needs to refuse.
    try:
        voxels, _ = read(volume(tmp_path / "a.nii", damage))
    except UNREADABLE:
        return
    assert np.isfinite(voxels).all()
    assert 70 not in damage


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
