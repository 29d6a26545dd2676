"""What a maximum intensity projection sees: the brightest voxel of every ray, and what belongs to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.render.canonical import foreground_box, upright


def project(volume: NDArray[Any], axis: int) -> NDArray[Any]:
    """The highest value of every ray along an axis, as ``display_slice`` would show it.

    Args:
        volume: ``(X, Y, Z)`` in RAS order.
        axis: the axis that the rays run along.

    Returns:
        ``(rows, columns)``.
    """
    return upright(volume.max(axis))


def project_at_brightest(values: NDArray[Any], image: NDArray[Any], axis: int) -> NDArray[Any]:
    """The value of the image's brightest voxel on every ray; of several equally bright ones the highest.

    Args:
        values: of the image's shape, at least 0.
        image: intensities, ``(X, Y, Z)`` in RAS order.
        axis: the axis that the rays run along.

    Returns:
        ``(rows, columns)``.
    """
    peaks = image.max(axis, keepdims=True)
    found = np.zeros(peaks.shape, values.dtype)
    # Plane by plane as the volume lies in memory: it is read once, in order, and nothing of its size is made.
    over = max(range(3), key=lambda other: abs(image.strides[other]))
    for at in range(image.shape[over]):
        plane = (*(slice(None),) * over, slice(at, at + 1))
        pixels = ... if over == axis else plane
        shown = np.where(image[plane] == peaks[pixels], values[plane], 0).max(axis, keepdims=True)
        np.maximum(found[pixels], shown, out=found[pixels])
    return upright(found.squeeze(axis))


def silhouettes(segmentation: NDArray[Any], axis: int) -> list[NDArray[np.bool_]]:
    """The shadow of each class above 0 along an axis, in the classes' order.

    Args:
        segmentation: class indices, ``(X, Y, Z)`` in RAS order.
        axis: the axis that the rays run along.

    Returns:
        ``(rows, columns)`` each, none of a class that is absent.
    """
    highest = project(segmentation, axis)
    if highest.max() <= 1:  # the most frequent case, without another look at the volume
        return [highest == 1] if highest.max() == 1 else []
    box = foreground_box(segmentation)
    inside = segmentation[tuple(slice(*ends) for ends in box or ())]
    classes = sorted(set().union(*(np.unique(plane[plane > 0]).tolist() for plane in inside)))
    return [project(segmentation == value, axis) for value in classes]


def slab(size: int, spacing_mm: float, thickness_mm: float, centre: float) -> slice:
    """The slices of a slab of about the given thickness, one at least, moved inside the volume where it reaches out.

    Args:
        size: slices of the volume.
        spacing_mm: from slice to slice, mm.
        thickness_mm: of the slab, mm.
        centre: the slice that it is centred on, from 0; halves lie between two slices.
    """
    count = min(size, max(1, round(thickness_mm / spacing_mm)))
    start = min(max(0, round(centre - (count - 1) / 2)), size - count)
    return slice(start, start + count)
