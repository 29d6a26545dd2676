"""Maximum intensity projections along the three axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_choice
from unoise_monai.render.canvas import Rgb, Spacing, Volume, Window, check_picture, find_window, foreground_box, upright
from unoise_monai.render.panels import LARGEST_PANEL, View, draw_views


def project(volume: NDArray[Any], axis: int) -> NDArray[Any]:
    """The highest value of every ray along an axis of a volume ``(X, Y, Z)`` in RAS order, ``(rows, columns)`` as
    ``display_slice`` would show them."""
    return upright(volume.max(axis))


def project_at_brightest(values: NDArray[Any], image: NDArray[Any], axis: int) -> NDArray[Any]:
    """The value, at least 0, of the image's brightest voxel on every ray; of several equally bright ones the highest.

    Both volumes are ``(X, Y, Z)`` in RAS order; the result is as that of ``project``.
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
    """The shadow, as ``project`` gives it, of each class above 0 that is there, in the order of class indices."""
    highest = project(segmentation, axis)
    if highest.max() <= 1:  # the most frequent case, without another look at the volume
        return [highest == 1] if highest.max() == 1 else []
    inside = segmentation[tuple(slice(*ends) for ends in foreground_box(segmentation) or ())]
    classes = sorted(set().union(*(np.unique(plane[plane > 0]).tolist() for plane in inside)))
    return [project(segmentation == value, axis) for value in classes]


def slab(size: int, spacing_mm: float, thickness_mm: float, centre: float) -> slice:
    """The slices, of ``size``, of a slab of about the given thickness, one at least, moved inside the volume.

    It is centred on slice ``centre``, from 0; halves lie between two slices. ``spacing_mm`` is from slice to slice.
    """
    count = min(size, max(1, round(thickness_mm / spacing_mm)))
    start = min(max(0, round(centre - (count - 1) / 2)), size - count)
    return slice(start, start + count)


VIEWS = ("sagittal", "coronal", "axial")
"""By the axis that the rays run along."""
DEPTHS = ("brightest", "any")
SLAB_PANEL = 360
"""Pixels of the longest side of one slab of many."""


def mips(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    slab_mm: float | None = None,
    centre: Sequence[float] | None = None,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> Rgb:
    """Show a volume along its three axes as maximum intensity projections: axial, coronal and sagittal.

    The volumes are canonical (``to_canonical``), the display convention is that of ``display_slice``, all three views
    have the same scale. The shadows of the segmentation's classes are outlined.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        importance: ``(X, Y, Z)``, 0 to 1; laid over in colour.
        segmentation: class indices, ``(X, Y, Z)``; each class above 0 is outlined.
        slab_mm: thickness of the slab that each view projects, mm; the whole volume where it is None.
        centre: voxel (X, Y, Z), from 0, that the slabs are centred on; the middle of the segmentation's extent where
            it is None, or of the volume where nothing is segmented.
        window: intensities that turn black and white; found in the projections where it is None (``find_window``).
        style: one of ``canvas.STYLES``.
        threshold: importance up to which ``style="colour"`` shows the scan alone.
        depth: whose importance colours a pixel. ``brightest``: that of the voxel the pixel shows, the brightest of
            its ray: colour lies on the vessel that one sees, and what lies before or behind it is hidden. ``any``: the
            highest of the ray; nothing is hidden, and a map with some importance everywhere colours everything.
        label: what the colour bar shows, with its unit.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite, when
            the image holds one value only, ``importance`` leaves [0, 1], or another argument is out of range.
    """
    check_picture(spacing_mm, 2, image, importance, segmentation, window, style, threshold)
    parts = {axis: slice(None) for axis in (2, 1, 0)}
    titles = {axis: f"{VIEWS[axis]} MIP" for axis in parts}
    if slab_mm is not None:
        check_slab(slab_mm)
        if centre is None:
            box = None if segmentation is None else foreground_box(segmentation)
            centre = [(first + end - 1) / 2 for first, end in box or [(0, size) for size in image.shape]]
        if len(centre) != 3 or not all(0 <= at < size for at, size in zip(centre, image.shape, strict=True)):
            raise ValueError(f"centre must be a voxel of the volume of shape {image.shape}, got {tuple(centre)}")
        for axis in parts:
            parts[axis] = part = slab(image.shape[axis], spacing_mm[axis], slab_mm, centre[axis])
            titles[axis] += f", {(part.stop - part.start) * spacing_mm[axis]:.3g} mm"
    slabs = [(axis, part, titles[axis]) for axis, part in parts.items()]
    look = {"style": style, "threshold": threshold, "label": label, "longest": LARGEST_PANEL}
    return _draw_slabs(image, spacing_mm, importance, segmentation, slabs, window, depth, **look)


def slab_mips(
    image: Volume,
    spacing_mm: Spacing,
    slab_mm: float,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    axis: int = 2,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> Rgb:
    """Show a volume as consecutive slabs along one axis, each a maximum intensity projection.

    The slabs follow each other without a gap, from the feet to the head (axial), from back to front (coronal), or
    from left to right (sagittal); the last may be thinner. Further arguments and errors are those of ``mips``.

    Args:
        slab_mm: thickness of a slab, mm, rounded to whole slices.
        axis: 0 sagittal, 1 coronal, 2 axial.
    """
    check_picture(spacing_mm, axis, image, importance, segmentation, window, style, threshold)
    check_slab(slab_mm)
    size, count = image.shape[axis], max(1, round(slab_mm / spacing_mm[axis]))
    slabs = []
    for start in range(0, size, count):
        end = min(start + count, size)
        slabs.append((axis, slice(start, end), f"slices {start + 1} to {end} of {size}"))
    look = {"style": style, "threshold": threshold, "label": label, "longest": SLAB_PANEL}
    return _draw_slabs(image, spacing_mm, importance, segmentation, slabs, window, depth, **look)


def check_slab(slab_mm: float) -> None:
    """Refuse, by ValueError, a thickness that is not a finite number of mm above 0."""
    if not (math.isfinite(slab_mm) and slab_mm > 0):
        raise ValueError(f"slab_mm must be a finite number above 0, got {slab_mm}")


def _draw_slabs(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None,
    segmentation: Volume | None,
    slabs: Sequence[tuple[int, slice, str]],
    window: Window | None,
    depth: str,
    **look: Any,
) -> Rgb:
    """A projection for each slab (axis, slices, title); ``look`` is what ``draw_views`` takes."""
    check_choice("depth", depth, DEPTHS)
    views = []
    for axis, part, title in slabs:
        cut = (*(slice(None),) * axis, part)
        scan, shown = image[cut], None
        if importance is not None:
            values = importance[cut]
            shown = project_at_brightest(values, scan, axis) if depth == "brightest" else project(values, axis)
        outlines = [] if segmentation is None else silhouettes(segmentation[cut], axis)
        views.append(View(axis, title, project(scan, axis), shown, outlines))
    window = find_window(np.concatenate([view.pixels.ravel() for view in views]), window)
    return draw_views(views, spacing_mm, window, **look)
