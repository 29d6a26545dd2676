"""Importance in colour over the patient's scan, with the segmentation's outline."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from unoise_monai.render.canonical import EDGE_LETTERS, check_importance, check_volumes, display_slice, pixel_mm
from unoise_monai.render.panels import Panel, draw_panels, grey_levels

COLOUR_MAP = "inferno"
OPACITY = 0.75
"""Of the colour where importance is 1."""

SMALLEST_PANEL, LARGEST_PANEL = 360, 640
"""Pixels of a panel's longer side; between the two, one for each voxel."""


def blend(grey: NDArray[Any], importance: NDArray[Any], threshold: float = 0.1) -> NDArray[np.float64]:
    """Lay importance over grey, the more opaque the higher it is, and not at all below the threshold.

    Args:
        grey: ``(rows, columns)``, 0 to 1.
        importance: ``(rows, columns)``, 0 to 1.
        threshold: importance up to which the grey image shows alone.

    Returns:
        RGB, ``(rows, columns, 3)``, 0 to 1.
    """
    colour = mpl.colormaps[COLOUR_MAP](importance)[..., :3]
    alpha = OPACITY * ((importance - threshold) / (1 - threshold)).clip(0, 1)[..., None]
    blended: NDArray[np.float64] = (1 - alpha) * grey[..., None] + alpha * colour
    return blended


def spread_slices(region: NDArray[np.bool_], axis: int, count: int) -> list[int]:
    """Slices spread evenly over a region's extent, in rising order.

    Where the extent holds fewer than ``count`` slices it is widened to both sides; where the volume does, all of its
    slices are taken. An empty region stands for the whole volume.

    Args:
        region: ``(X, Y, Z)``.
        axis: the axis that the slices are taken along.
        count: how many.
    """
    size = region.shape[axis]
    others = tuple(other for other in range(3) if other != axis)
    inside = np.flatnonzero(region.any(axis=others))
    low, high = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, size)
    count = min(count, size)
    if high - low < count:
        low = min(max(0, (low + high - count) // 2), size - count)
        high = low + count
    return [int(low + (high - low) * (step + 0.5) / count) for step in range(count)]


def overlay_slices(
    image: NDArray[Any],
    importance: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    axis: int = 2,
    count: int = 6,
    segmentation: NDArray[Any] | None = None,
    window: tuple[float, float] | None = None,
    threshold: float = 0.1,
) -> NDArray[np.uint8]:
    """Show what a segmentation relied on: slices of the scan, importance in colour, the segmentation outlined.

    The volumes are canonical (``to_canonical``). Slices are spread over the extent of the segmentation's foreground,
    or, where there is none, of the region with at least half the highest importance; they run from the patient's
    feet to the head (axial), from back to front (coronal), or from left to right (sagittal).

    Axial slices are drawn as radiologists look at them, the patient's right on the picture's left, front up; coronal
    ones head up, the patient's right on the left; sagittal ones head up, front on the left. Letters at the edges say
    so. Voxels keep their true proportions. Compare Koker et al., "U-Noise", 2021, Fig. 2.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        importance: ``(X, Y, Z)``, 0 to 1.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        axis: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices.
        segmentation: class indices, ``(X, Y, Z)``; each class above 0 is outlined.
        window: intensities that turn black and white; the image's 1st and 99th percentile where it is None.
        threshold: importance up to which the scan shows alone.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite.
        ValueError: when ``importance`` leaves [0, 1].
        ValueError: when ``axis``, ``count``, ``spacing_mm``, ``window`` or ``threshold`` is out of range.
    """
    check_volumes(spacing_mm, axis, image, importance=importance, segmentation=segmentation)
    check_count(count)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}")
    shares = check_importance(importance)
    grey = grey_levels(image, window)
    labels = np.zeros(image.shape, dtype=np.int64) if segmentation is None else segmentation
    region = labels > 0
    if not region.any() and shares.max() > 0:
        region = shares >= shares.max() / 2

    panels = []
    for index in spread_slices(region, axis, count):
        label = display_slice(labels, axis, index)
        panels.append(
            Panel(
                rgb=blend(display_slice(grey, axis, index), display_slice(shares, axis, index), threshold),
                title=f"slice {index + 1} of {image.shape[axis]}",
                outlines=[label == value for value in np.unique(label[label > 0])],
            )
        )
    longest = min(max(SMALLEST_PANEL, *panels[0].rgb.shape[:2]), LARGEST_PANEL)
    return draw_panels(
        panels, pixel_mm(spacing_mm, axis), EDGE_LETTERS[axis], COLOUR_MAP, "importance, 0 to 1", longest
    )


def check_count(count: int) -> None:
    """Refuse a number of slices below 1.

    Raises:
        ValueError: when ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
