"""What makes a volume unusable though its file reads well, said as the end of a sentence about it."""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

VOXEL_SIZES_MM = (1e-3, 1e3)
FARTHEST_MM = 1e6
"""Of a volume's first voxel from the origin: beyond it, resampling loses the place of the voxels to rounding."""
LEAST_DETERMINANT = 0.1
"""Of the directions of a volume's axes: 1 for right angles, 0 where they lie in a plane."""
LARGEST_INTENSITY = 1e12
"""Mean and variance of larger ones overflow float32."""


def affine_fault(affine: NDArray[np.float64]) -> str:
    """What keeps a volume with this affine from having a place in space, as the end of a sentence; else empty."""
    if not np.isfinite(affine).all():
        return "must have a finite affine, got NaN or infinite numbers"
    sizes = voxel_sizes(affine)
    least, most = VOXEL_SIZES_MM
    if not (least <= sizes.min() and sizes.max() <= most):
        return f"must have voxel sizes from {least:g} to {most:g} mm, got {', '.join(f'{size:g}' for size in sizes)}"
    determinant = abs(float(np.linalg.det(affine[:3, :3] / sizes)))
    if determinant < LEAST_DETERMINANT:
        return (
            "must have an affine whose axes stand apart, with a determinant of their directions of at least "
            f"{LEAST_DETERMINANT}, got {determinant:.3g}: it is singular or too sheared"
        )
    farthest = float(np.abs(affine[:3, 3]).max())
    if farthest > FARTHEST_MM:
        return f"must lie within {FARTHEST_MM:g} mm of the origin, got {farthest:g} mm"
    return ""


def intensity_fault(low: float, high: float) -> str:
    """What keeps an image with this least and largest voxel from a network; else empty."""
    if low == high:
        return f"must not be constant, got {low:g} everywhere"
    if max(-low, high) > LARGEST_INTENSITY:
        return f"must hold intensities up to {LARGEST_INTENSITY:g}, got {low:g} to {high:g}"
    return ""
