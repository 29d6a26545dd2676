"""Slices of the patient's scan on a sheet, importance in colour, the segmentation outlined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.render.canonical import EDGE_LETTERS, display_slice, foreground_box, pixel_mm
from unoise_monai.render.checks import check_picture
from unoise_monai.render.grey import find_window, grey_levels
from unoise_monai.render.overlay import bar_colours, blend
from unoise_monai.render.panels import Panel, draw_panels, longest_side

BACKGROUND = 0.1
"""Grey up to which an image counts as background where neither a segmentation nor importance says what to show."""


def montage(
    image: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    importance: NDArray[Any] | None = None,
    segmentation: NDArray[Any] | None = None,
    axis: int = 2,
    count: int = 6,
    slices: tuple[int, int] | None = None,
    crop_mm: float | None = None,
    window: tuple[float, float] | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    label: str = "importance, 0 to 1",
) -> NDArray[np.uint8]:
    """Show what a segmentation relied on, slice by slice.

    The volumes are canonical (``to_canonical``). The foreground is the segmentation's; or, where there is none, the
    region with at least half the highest importance; or, where there is none either, what is not black in the image.
    Slices are spread evenly over its extent; they run from the patient's feet to the head (axial), from back to front
    (coronal), or from left to right (sagittal).

    Axial slices are drawn as radiologists look at them, the patient's right on the picture's left, front up; coronal
    ones head up, the patient's right on the left; sagittal ones head up, front on the left. Letters at the edges say
    so. Voxels keep their true proportions. Compare Koker et al., "U-Noise", 2021, Fig. 2.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        importance: ``(X, Y, Z)``, 0 to 1; laid over in colour.
        segmentation: class indices, ``(X, Y, Z)``; each class above 0 is outlined.
        axis: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices; fewer where the range holds fewer.
        slices: first and last slice, from 0, of the range that they are spread over, in place of the foreground's.
        crop_mm: margin around the foreground, mm, that slices are cropped to; uncropped where it is None.
        window: intensities that turn black and white; found in the image where it is None (``find_window``).
        style: one of ``overlay.STYLES``.
        threshold: importance up to which ``style="colour"`` shows the scan alone.
        label: what the colour bar shows, with its unit.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite.
        ValueError: when the image holds one value only, or ``importance`` leaves [0, 1].
        ValueError: when ``spacing_mm``, ``axis``, ``count``, ``slices``, ``crop_mm``, ``window``, ``style`` or
            ``threshold`` is out of range.
    """
    check_picture(spacing_mm, axis, image, importance, segmentation, window, style, threshold)
    check_layout(count, crop_mm)
    if slices is not None and not (len(slices) == 2 and 0 <= slices[0] <= slices[1] < image.shape[axis]):
        raise ValueError(
            f"slices must be (first, last), from 0, within the {image.shape[axis]} of axis {axis}, got {tuple(slices)}"
        )
    window = find_window(image, window)
    box = foreground(image, importance, segmentation, window)
    crop = tuple(
        slice(None) if crop_mm is None or along == axis else within(box[along], crop_mm / spacing_mm[along])
        for along in range(3)
    )
    low, high = (slices[0], slices[1] + 1) if slices else widen(box[axis], count, image.shape[axis])
    panels = []
    for index in spread(low, high, count):
        pixels = display_slice(image[crop], axis, index)
        shares = None if importance is None else display_slice(importance[crop], axis, index)
        labels = None if segmentation is None else display_slice(segmentation[crop], axis, index)
        panels.append(
            Panel(
                rgb=blend(grey_levels(pixels, window), shares, threshold, style),
                title=f"slice {index + 1} of {image.shape[axis]}",
                outlines=[] if labels is None else [labels == value for value in np.unique(labels[labels > 0])],
            )
        )
    bar = None if importance is None else bar_colours(threshold, style)
    return draw_panels(panels, pixel_mm(spacing_mm, axis), EDGE_LETTERS[axis], bar, label, longest_side(panels))


def foreground(
    image: NDArray[Any],
    importance: NDArray[Any] | None,
    segmentation: NDArray[Any] | None,
    window: tuple[float, float],
) -> tuple[tuple[int, int], ...]:
    """First slice and the one after the last, along each axis, of what is worth showing; all where nothing is."""
    box = None if segmentation is None else foreground_box(segmentation)
    if box is None and importance is not None and importance.max() > 0:
        box = foreground_box(importance >= importance.max() / 2)
    if box is None and importance is None:
        box = foreground_box(image > window[0] + BACKGROUND * (window[1] - window[0]))
    return box or tuple((0, size) for size in image.shape)


def within(ends: tuple[int, int], margin: float) -> slice:
    """An extent with a margin of at least so many voxels at both ends, as far as the volume has them."""
    low, high = ends
    # The slack keeps a spacing that float32 rounded, as NIfTI's are, from adding a voxel.
    voxels = math.ceil(margin - 1e-3)
    return slice(max(0, low - voxels), high + voxels)


def widen(ends: tuple[int, int], count: int, size: int) -> tuple[int, int]:
    """An extent of at least ``count`` slices, or all of the ``size``: widened to both sides where it holds fewer."""
    low, high = ends
    count = min(count, size)
    if high - low >= count:
        return low, high
    low = min(max(0, (low + high - count) // 2), size - count)
    return low, low + count


def spread(low: int, high: int, count: int) -> list[int]:
    """``count`` slices spread evenly from ``low`` to before ``high``, in rising order; all where there are fewer."""
    count = min(count, high - low)
    return [int(low + (high - low) * (step + 0.5) / count) for step in range(count)]


def check_layout(count: int, crop_mm: float | None = None) -> None:
    """Refuse a number of slices below 1 and a negative margin.

    Raises:
        ValueError: when ``count`` is below 1, or ``crop_mm`` is not a finite number of at least 0.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if crop_mm is not None and not (math.isfinite(crop_mm) and crop_mm >= 0):
        raise ValueError(f"crop_mm must be a finite number of at least 0, got {crop_mm}")
