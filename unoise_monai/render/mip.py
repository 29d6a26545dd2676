"""Maximum intensity projections along the three axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_choice
from unoise_monai.render.canvas import (
    EDGE_LETTERS,
    bar_colours,
    blend,
    check_picture,
    find_window,
    foreground_box,
    grey_levels,
    pixel_mm,
    upright,
)
from unoise_monai.render.panels import LARGEST_PANEL, Panel, draw_panels


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


VIEWS = ("sagittal", "coronal", "axial")
"""By the axis that the rays run along."""
DEPTHS = ("brightest", "any")
SLAB_PANEL = 360
"""Pixels of the longest side of one slab of many."""
Spacing = tuple[float, float, float]
Volume = NDArray[Any]


class Volumes(NamedTuple):
    """What is drawn over each other, all of one shape."""

    image: Volume
    importance: Volume | None
    segmentation: Volume | None

    def slab(self, view: View) -> Volumes:
        """The part of each that a view projects."""
        part = (*(slice(None),) * view.axis, view.part)
        importance = None if self.importance is None else self.importance[part]
        return Volumes(self.image[part], importance, None if self.segmentation is None else self.segmentation[part])


class View(NamedTuple):
    """The axis that the rays run along, and the slices that they run through."""

    axis: int
    part: slice
    title: str


class Look(NamedTuple):
    """How a sheet is drawn; the arguments of ``mips`` of these names."""

    window: tuple[float, float] | None
    style: str
    threshold: float
    depth: str
    label: str


def mips(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    slab_mm: float | None = None,
    centre: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> NDArray[np.uint8]:
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
        style: one of ``overlay.STYLES``.
        threshold: importance up to which ``style="colour"`` shows the scan alone.
        depth: whose importance colours a pixel. ``brightest``: that of the voxel the pixel shows, the brightest of
            its ray, so that colour lies on the vessel that one sees; what lies hidden before or behind it is not
            shown. ``any``: the highest of the ray, wherever it lies; nothing is hidden, and a map with some
            importance everywhere colours everything.
        label: what the colour bar shows, with its unit.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite.
        ValueError: when the image holds one value only, or ``importance`` leaves [0, 1].
        ValueError: when ``spacing_mm``, ``slab_mm``, ``centre``, ``window``, ``style``, ``threshold`` or ``depth`` is
            out of range.
    """
    check_picture(spacing_mm, 2, image, importance, segmentation, window, style, threshold)
    views = [View(axis, slice(None), f"{VIEWS[axis]} MIP") for axis in (2, 1, 0)]
    if slab_mm is not None:
        check_slab(slab_mm)
        centre = _centre(image.shape, segmentation) if centre is None else centre
        if len(centre) != 3 or not all(0 <= at < size for at, size in zip(centre, image.shape, strict=True)):
            raise ValueError(f"centre must be a voxel of the volume of shape {image.shape}, got {tuple(centre)}")
        parts = [slab(image.shape[axis], spacing_mm[axis], slab_mm, centre[axis]) for axis in (2, 1, 0)]
        views = [
            View(view.axis, part, f"{view.title}, {(part.stop - part.start) * spacing_mm[view.axis]:.3g} mm")
            for view, part in zip(views, parts, strict=True)
        ]
    look = Look(window, style, threshold, depth, label)
    return _sheet(Volumes(image, importance, segmentation), spacing_mm, views, look, LARGEST_PANEL)


def slab_mips(
    image: Volume,
    spacing_mm: Spacing,
    slab_mm: float,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    axis: int = 2,
    window: tuple[float, float] | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    depth: str = "brightest",
    label: str = "importance, 0 to 1",
) -> NDArray[np.uint8]:
    """Show a volume as consecutive slabs along one axis, each a maximum intensity projection.

    The slabs follow each other without a gap, from the feet to the head (axial), from back to front (coronal), or
    from left to right (sagittal); the last may be thinner.

    Args:
        slab_mm: thickness of a slab, mm, rounded to whole slices.
        axis: 0 sagittal, 1 coronal, 2 axial.

    The other arguments, what is returned and what is raised are those of ``mips``.
    """
    check_picture(spacing_mm, axis, image, importance, segmentation, window, style, threshold)
    check_slab(slab_mm)
    size, count = image.shape[axis], max(1, round(slab_mm / spacing_mm[axis]))
    parts = [slice(start, min(start + count, size)) for start in range(0, size, count)]
    views = [View(axis, part, f"slices {part.start + 1} to {part.stop} of {size}") for part in parts]
    look = Look(window, style, threshold, depth, label)
    return _sheet(Volumes(image, importance, segmentation), spacing_mm, views, look, SLAB_PANEL)


def check_slab(slab_mm: float) -> None:
    """Refuse a thickness that is not a finite number of mm above 0.

    Raises:
        ValueError: when it is not.
    """
    if not (math.isfinite(slab_mm) and slab_mm > 0):
        raise ValueError(f"slab_mm must be a finite number above 0, got {slab_mm}")


def _sheet(volumes: Volumes, spacing_mm: Spacing, views: Sequence[View], look: Look, longest: int) -> NDArray[np.uint8]:
    check_choice("depth", look.depth, DEPTHS)
    slabs = [volumes.slab(view) for view in views]
    shown = [project(part.image, view.axis) for part, view in zip(slabs, views, strict=True)]
    window = find_window(np.concatenate([pixels.ravel() for pixels in shown]), look.window)
    panels = []
    for (image, importance, segmentation), view, pixels in zip(slabs, views, shown, strict=True):
        if importance is not None and look.depth == "brightest":
            importance = project_at_brightest(importance, image, view.axis)
        elif importance is not None:
            importance = project(importance, view.axis)
        rgb = blend(grey_levels(pixels, window), importance, look.threshold, look.style)
        outlines = [] if segmentation is None else silhouettes(segmentation, view.axis)
        panels.append(Panel(rgb, view.title, outlines, pixel_mm(spacing_mm, view.axis), EDGE_LETTERS[view.axis]))
    bar = None if volumes.importance is None else bar_colours(look.threshold, look.style)
    return draw_panels(panels, colour_map=bar, colour_label=look.label, longest=longest)


def _centre(shape: tuple[int, ...], segmentation: Volume | None) -> list[float]:
    box = None if segmentation is None else foreground_box(segmentation)
    return [(first + end - 1) / 2 for first, end in box or [(0, size) for size in shape]]
