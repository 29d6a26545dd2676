"""From a volume as a file stores it to slices as a radiologist expects them."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

EDGE_LETTERS: tuple[dict[str, str], ...] = (
    {"left": "A", "right": "P", "top": "S", "bottom": "I"},
    {"left": "R", "right": "L", "top": "S", "bottom": "I"},
    {"left": "R", "right": "L", "top": "A", "bottom": "P"},
)
"""What lies at each edge of a picture, by the axis that the slice is taken along."""


def to_canonical(array: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Turn a volume to the closest RAS axes, so that its pictures do not depend on how the file stores it.

    Axes are permuted and flipped, never resampled: an oblique volume keeps its voxels.

    Args:
        array: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxel indices to RAS mm.

    Returns:
        The volume, its axes towards the patient's right, front and head, and the voxels' size along them, mm.

    Raises:
        ValueError: when ``array`` is not 3-D.
        ValueError: when ``affine`` is not 4x4, not finite, or singular.
    """
    matrix = check_affine(affine)
    if array.ndim != 3:
        raise ValueError(f"array must be 3-D, got shape {array.shape}")
    sizes = voxel_sizes(matrix)
    orientation = nib.io_orientation(matrix)
    spacing = [0.0, 0.0, 0.0]
    for axis, canonical in enumerate(orientation[:, 0]):
        spacing[int(canonical)] = float(sizes[axis])
    return nib.apply_orientation(array, orientation), (spacing[0], spacing[1], spacing[2])


def display_slice(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """One slice of a canonical volume, as rows and columns of a picture.

    Axial (axis 2) as radiologists look at it: the patient's right on the picture's left, front up. Coronal (axis 1):
    head up, the patient's right on the left. Sagittal (axis 0): head up, front on the left.

    Args:
        volume: ``(X, Y, Z)`` in RAS order.
        axis: the axis that the slice is taken along.
        index: which slice.

    Returns:
        ``(rows, columns)``, from the top left.
    """
    # A view; np.take would first copy a volume that is not contiguous.
    return upright(np.moveaxis(volume, axis, 0)[index])


def upright(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane of a canonical volume, its axes in the volume's order, as ``display_slice`` shows it."""
    return plane[::-1, ::-1].T


def foreground_box(mask: NDArray[Any]) -> tuple[tuple[int, int], ...] | None:
    """First voxel and the one after the last, along each axis, of what is above 0; None where nothing is.

    Args:
        mask: ``(X, Y, Z)``, bool or class indices.
    """
    seen = mask.max(axis=2)
    x, y = np.flatnonzero(seen.max(axis=1) > 0), np.flatnonzero(seen.max(axis=0) > 0)
    if not x.size:
        return None
    z = np.flatnonzero(mask.max(axis=0).max(axis=0) > 0)
    return tuple((int(inside[0]), int(inside[-1]) + 1) for inside in (x, y, z))


def pixel_mm(spacing_mm: tuple[float, float, float], axis: int) -> tuple[float, float]:
    """Height and width, mm, of a pixel of ``display_slice``."""
    width, height = (size for index, size in enumerate(spacing_mm) if index != axis)
    return height, width


def check_affine(affine: NDArray[Any]) -> NDArray[np.float64]:
    """An affine, ``(4, 4)``, as float64.

    Raises:
        ValueError: when ``affine`` is not 4x4, not finite, or singular.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"affine must be 4x4, got shape {matrix.shape}")
    sizes = voxel_sizes(matrix)
    # The rank is taken of the directions, so that small voxels do not count as a singular affine.
    if not np.isfinite(matrix).all() or not sizes.all() or np.linalg.matrix_rank(matrix[:3, :3] / sizes) < 3:
        raise ValueError(f"affine must be finite and not singular, got {matrix.tolist()}")
    return matrix
