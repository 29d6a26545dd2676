"""Volumes that a browser can hold: fewer voxels, small whole numbers, a header of their own."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.checks import check_choice

MOST_VOXELS = 8_000_000
"""Of one layer of the viewer."""
STEPS = 1023
"""Into how many steps intensities that are no whole numbers are cut."""


def block_factors(shape: tuple[int, ...], affine: NDArray[np.float64], most: int = MOST_VOXELS) -> tuple[int, int, int]:
    """How many voxels along each axis become one, so that at most ``most`` are left.

    The axis with the smallest voxels is thinned first, so that they become more alike.

    Args:
        shape: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxel indices to mm.
        most: voxels, at least 1.

    Raises:
        ValueError: when ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    factors, sizes = [1, 1, 1], voxel_sizes(affine)

    def left() -> list[int]:
        return [-(-size // factor) for size, factor in zip(shape, factors, strict=True)]

    while np.prod(left(), dtype=np.int64) > most:
        thinnable = [axis for axis, size in enumerate(left()) if size > 1]
        factors[min(thinnable, key=lambda axis: sizes[axis] * factors[axis])] += 1
    return factors[0], factors[1], factors[2]


def shrink(volume: NDArray[Any], factors: tuple[int, int, int], how: str = "mean") -> NDArray[Any]:
    """One voxel for each block of voxels; of blocks that the border cuts, the voxels that are there.

    Args:
        volume: ``(X, Y, Z)``.
        factors: the block's voxels along each axis.
        how: ``mean``, as float32; or ``max``, for class indices: a vessel of one voxel stays.

    Raises:
        ValueError: when ``how`` is neither.
    """
    check_choice("how", how, ("mean", "max"))
    combine = np.add if how == "mean" else np.maximum
    for axis, factor in enumerate(factors):
        whole = np.moveaxis(volume, axis, 0)
        # The first voxel of every block, then the second, ...: the last block can have fewer.
        blocks = whole[::factor].astype(np.float32 if how == "mean" else volume.dtype)
        counts = np.ones((len(blocks), 1, 1), dtype=np.float32)
        for step in range(1, factor):
            further = whole[step::factor]
            combine(blocks[: len(further)], further, out=blocks[: len(further)])
            counts[: len(further)] += 1
        volume = np.moveaxis(blocks / counts if how == "mean" and factor > 1 else blocks, 0, axis)
    return volume


def shrink_affine(affine: NDArray[np.float64], factors: tuple[int, int, int]) -> NDArray[np.float64]:
    """The affine of a volume after ``shrink``: a block's centre is the centre of its voxels."""
    blocks = np.diag([*map(float, factors), 1.0])
    blocks[:3, 3] = (np.asarray(factors) - 1) / 2
    return np.asarray(affine @ blocks, dtype=np.float64)


def pack(volume: NDArray[Any], affine: NDArray[np.float64], classes: bool = False) -> str:
    """A volume as base64 of compressed NIfTI, whose header holds the grid and nothing else.

    Whole numbers are stored as they are, others as uint8 (0 to 1) or in 1024 steps from their lowest to their highest.

    Args:
        volume: ``(X, Y, Z)``, finite.
        affine: ``(4, 4)``, voxel indices to RAS mm.
        classes: whether the values are class indices; the viewer outlines those.

    Raises:
        ValueError: when ``volume`` is not 3-D, is empty, or holds values that are not finite.
    """
    if volume.ndim != 3 or volume.size == 0:
        raise ValueError(f"volume must be 3-D and not empty, got shape {volume.shape}")
    low, high = float(volume.min()), float(volume.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"volume must hold finite values only, got {low} to {high}")
    kind, slope, start = _steps(volume, low, high)
    stored = np.round((volume.astype(np.float32) - start) / slope).astype(kind)
    image = nib.Nifti1Image(stored, affine)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, start)
    image.header.set_intent("label" if classes else "none")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")


def _steps(volume: NDArray[Any], low: float, high: float) -> tuple[type[np.integer[Any]], float, float]:
    """How a volume is stored: the type of its whole numbers, what one step is worth, and what 0 is worth."""
    for kind in (np.uint8, np.int16):
        fits = np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        if fits and (volume.dtype.kind != "f" or bool((volume == np.round(volume)).all())):
            return kind, 1.0, 0.0
    if low >= 0 and high <= 1:
        return np.uint8, 1 / 255, 0.0
    return np.int16, max((high - low) / STEPS, float(np.finfo(np.float32).tiny)), low
