"""Volumes get fewer voxels in the same place, and files that say nothing but their grid."""

from __future__ import annotations

import base64
import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from unoise_monai.report.volumes import block_factors, pack, shrink, shrink_affine

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
    with pytest.raises(ValueError, match="how must be one of 'mean', 'max', got 'min'"):
        shrink(volume, factors, "min")


def test_a_blob_stays_where_it_is() -> None:
    factors = (2, 3, 4)
    volume = RNG.random((8, 9, 12))
    small, affine = shrink(volume, factors), shrink_affine(OBLIQUE, factors)

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
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        block_factors((3, 3, 3), OBLIQUE, 0)


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


def test_the_header_is_new(tmp_path: object) -> None:
    volume = RNG.integers(0, 2, (3, 4, 5))
    header = unpack(pack(volume, OBLIQUE)).header
    assert header["descrip"].item() == b""
    assert len(header.extensions) == 0
    assert header.get_intent()[0] == "none"
    assert unpack(pack(volume, OBLIQUE, classes=True)).header.get_intent()[0] == "label"
    assert pack(volume, OBLIQUE) == pack(volume, OBLIQUE)


@pytest.mark.parametrize(
    ("volume", "says"),
    [
        (np.zeros((2, 2)), r"volume must be 3-D and not empty, got shape \(2, 2\)"),
        (np.zeros((2, 0, 2)), "not empty"),
        (np.full((2, 2, 2), np.nan), "volume must hold finite values only, got nan to nan"),
    ],
)
def test_refusals(volume: NDArray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pack(volume, OBLIQUE)
