"""Slices side by side: of a scan, of shares of its voxels, of layers."""

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_fraction
from unoise_monai.render.canvas import (
    EDGE_LETTERS,
    Rgb,
    Spacing,
    Volume,
    Window,
    blend,
    check_picture,
    check_view,
    check_volume,
    display_slice,
    find_window,
    foreground_box,
    grey_levels,
    pixel_mm,
    scale_map,
    upright,
)
from unoise_monai.render.mip import project
from unoise_monai.render.panels import Panel, View, draw_panels, draw_views, title_width

BACKGROUND = 0.1
"""Grey up to which an image counts as background where neither a segmentation nor importance says what to show."""


def montage(
    image: Volume,
    spacing_mm: Spacing,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    axis: int = 2,
    count: int = 6,
    slices: tuple[int, int] | None = None,
    crop_mm: float | None = None,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    label: str = "importance, 0 to 1",
) -> Rgb:
    """Show what a segmentation relied on, slice by slice.

    The volumes are canonical (``to_canonical``). The foreground is the segmentation's; or, where there is none, the
    region with at least half the highest importance; or, where there is none either, what is not black in the image.
    Slices are spread evenly over its extent; they run from the patient's feet to the head (axial), from back to front
    (coronal), or from left to right (sagittal), and are shown as ``display_slice`` turns them, with letters at the
    edges. Compare Koker et al., "U-Noise", 2021, Fig. 2.

    Args:
        image, spacing_mm, importance, segmentation, style, threshold, label: as in ``mips``.
        axis: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices; fewer where the range holds fewer.
        slices: first and last slice, from 0, of the range that they are spread over, in place of the foreground's.
        crop_mm: margin around the foreground, mm, that slices are cropped to; uncropped where it is None.
        window: intensities that turn black and white; found in the image where it is None (``find_window``).

    Raises:
        ValueError: as ``mips``, and when ``axis``, ``count``, ``slices`` or ``crop_mm`` is out of range.
    """
    check_picture(spacing_mm, axis, image, importance, segmentation, window, style, threshold)
    check_layout(count, crop_mm)
    size = image.shape[axis]
    if slices is not None and not (len(slices) == 2 and 0 <= slices[0] <= slices[1] < size):
        raise ValueError(f"slices must be (first, last), from 0, within the {size} of axis {axis}, got {tuple(slices)}")
    window = find_window(image, window)
    box = foreground(image, importance, segmentation, window)
    crop = [slice(None)] * 3
    for along in {0, 1, 2} - {axis} if crop_mm is not None else ():
        # The slack keeps a spacing that float32 rounded, as NIfTI's are, from adding a voxel.
        margin = math.ceil((crop_mm or 0) / spacing_mm[along] - 1e-3)
        crop[along] = slice(max(0, box[along][0] - margin), box[along][1] + margin)
    low, high = (slices[0], slices[1] + 1) if slices else widen(box[axis], count, size)
    views = []
    for index in spread(low, high, count):
        shown, labels = (
            None if volume is None else display_slice(volume[tuple(crop)], axis, index)
            for volume in (importance, segmentation)
        )
        outlines = [] if labels is None else [labels == value for value in np.unique(labels[labels > 0])]
        views.append(
            View(axis, f"slice {index + 1} of {size}", display_slice(image[tuple(crop)], axis, index), shown, outlines)
        )
    return draw_views(views, spacing_mm, window, style, threshold, label)


def foreground(
    image: Volume, importance: Volume | None, segmentation: Volume | None, window: Window
) -> tuple[tuple[int, int], ...]:
    """First slice and the one after the last, along each axis, of what is worth showing; all where nothing is."""
    box = None if segmentation is None else foreground_box(segmentation)
    if box is None and importance is not None and importance.max() > 0:
        box = foreground_box(importance >= importance.max() / 2)
    if box is None and importance is None:
        box = foreground_box(image > window[0] + BACKGROUND * (window[1] - window[0]))
    return box or tuple((0, size) for size in image.shape)


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
    """Refuse, by ValueError, a number of slices below 1 and a margin that is not a finite number of at least 0 mm."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if crop_mm is not None and not (math.isfinite(crop_mm) and crop_mm >= 0):
        raise ValueError(f"crop_mm must be a finite number of at least 0, got {crop_mm}")


DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PAPER_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
"""Of the tolerance B, in the paper's Fig. 3b."""


def most_important(importance: Volume, share: float) -> NDArray[np.bool_]:
    """The given share, above 0 and at most 1 (else ValueError), of a volume's voxels, the most important ones.

    Voxels as important as the last one that fits are all taken, whatever their order: a map with ties can show more.
    """
    check_fraction("share", share)
    kept = max(1, round(share * importance.size))
    cut = np.partition(importance, importance.size - kept, axis=None)[importance.size - kept]
    return np.asarray(importance >= cut)


def decile_pictures(
    image: Volume,
    importance: Volume,
    spacing_mm: Spacing,
    axis: int = 2,
    index: int | None = None,
    shares: Sequence[float] = DECILES,
    thresholds: Sequence[float] | None = None,
    window: Window | None = None,
    mip: bool = False,
) -> Rgb:
    """Show one slice with only the most important voxels of the volume visible, the others black, and then all of it.

    With ``mip`` the maximum intensity projection of the visible voxels takes the slice's place: vessels leave a slice
    after a few voxels. Each panel's title is the share of the volume that it shows; slices are shown as
    ``display_slice`` turns them.

    Koker et al., "U-Noise", 2021, Fig. 3b, which takes ``thresholds=PAPER_THRESHOLDS``.

    Args:
        image, importance, spacing_mm: as in ``mips``.
        axis: 0 sagittal, 1 coronal, 2 axial.
        index: which slice; the one with the highest sum of importance where it is None.
        shares: shares of the voxels, each above 0 and at most 1.
        thresholds: highest tolerance B = 1 - importance of the visible voxels, 0 to 1, used in place of ``shares``.
        window: intensities that turn black and white; found in the image, or in its projection, where it is None.
        mip: project the visible voxels along the axis, in place of showing a slice.

    Raises:
        ValueError: as ``mips``, and when ``axis``, ``index``, a share or a threshold is out of range.
    """
    check_picture(spacing_mm, axis, image, importance, None, window)
    values = np.clip(importance, 0, 1, dtype=np.float32)
    if index is None:
        score = values.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
        best = np.flatnonzero(np.isclose(score, score.max()))
        index = int(best[len(best) // 2])
    if not 0 <= index < image.shape[axis]:
        raise ValueError(f"index must be at least 0 and below {image.shape[axis]}, got {index}")

    window = find_window(project(image, axis) if mip else image, window)
    views = []
    for title, visible in _steps(values, shares, thresholds):
        if mip:
            # Hidden voxels are black, so below every visible one.
            shown, seen = upright(image.max(axis, where=visible, initial=image.min())), project(visible, axis)
        else:
            shown, seen = display_slice(image, axis, index), display_slice(visible, axis, index)
        views.append(View(axis, title, np.where(seen, shown, window[0])))
    return draw_views(views, spacing_mm, window, longest=280)


def _steps(
    importance: NDArray[np.float32], shares: Sequence[float], thresholds: Sequence[float] | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The title of each panel and the voxels that it shows, one after the other: masks of large volumes are large."""

    def percent(share: float) -> str:
        return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"

    for share in shares if thresholds is None else ():
        visible = most_important(importance, share)
        ties = "" if visible.mean() - share < 0.005 else f" (ties: {percent(visible.mean())})"
        yield f"top {percent(share)}{ties}", visible
    for threshold in () if thresholds is None else thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"thresholds must lie in [0, 1], got {threshold}")
        # The importance is compared, not 1 - importance, whose rounding would move voxels on the threshold.
        visible = importance >= np.float32(1 - threshold)
        yield f"B ≤ {threshold:g} ({percent(visible.mean())})", visible
    yield "all", np.ones(importance.shape, dtype=bool)


PANEL_WIDTH = 280
"""Pixels, enough for a layer's name and range."""


def layer_grid(
    maps: Mapping[str, Volume],
    spacing_mm: Spacing,
    axis: int = 2,
    image: Volume | None = None,
    window: Window | None = None,
) -> Rgb:
    """Draw the maximum intensity projection of one map a layer, from left to right and from top to bottom.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021, Fig. 5:
    from the first layer to the last, and then the network's output. Each panel is scaled to its own range, the lowest
    and the highest value of the projection, which stand in its title, so that layers of very different scale are all
    seen; one value everywhere is black. Deep layers of fewer voxels are drawn over the same part of the patient.

    Args:
        maps: layer's name to its map, ``(X', Y', Z')`` in RAS order, the first layer first and the output last; they
            may differ in shape, and all cover the extent of the image. The projection of a signed map shows its
            highest values: give its magnitude to see both signs.
        spacing_mm: size along X, Y and Z, mm, of the image's voxels, or, without one, of the map's with the most.
        axis: the axis that is projected along: 0 sagittal, 1 coronal, 2 axial.
        image: intensities, ``(X, Y, Z)`` in RAS order, drawn before the layers.
        window: the image's intensities that turn black and white; found in its projection where it is None.

    Raises:
        ValueError: when there is no map, or one is not 3-D, is empty, or holds NaN or infinity; else as ``mips``.
    """
    if not maps:
        raise ValueError("maps must hold at least one layer, got none")
    check_view(spacing_mm, axis, window)
    for name, values in maps.items():
        check_volume(f"map of {name!r}", values)
    if image is not None:
        check_picture(spacing_mm, axis, image)
    finest = max(maps.values(), key=lambda values: values.size) if image is None else image
    extent_mm = np.multiply(finest.shape, spacing_mm)
    pictures: list[tuple[str, Volume, NDArray[Any]]]
    pictures = [] if image is None else [("image", image, grey_levels(project(image, axis), window))]
    for layer, values in maps.items():
        picture = project(values, axis)
        low, high = float(picture.min()), float(picture.max())
        title = _title(layer, f"all {low:.3g}" if low == high else f"{low:.3g} to {high:.3g}")
        grey = np.zeros(picture.shape) if low == high else np.asarray(scale_map(picture), dtype=np.float64)
        pictures.append((title, values, grey))
    panels = []
    for title, values, grey in pictures:
        panels.append(Panel(blend(grey, None), title, pixel_mm=pixel_mm(extent_mm / values.shape, axis)))
    height_mm, width_mm = pixel_mm(extent_mm, axis)
    longest = round(PANEL_WIDTH * max(1, height_mm / width_mm))
    return draw_panels(panels, letters=EDGE_LETTERS[axis], longest=longest)


def _title(name: str, values: str) -> str:
    """A layer's name and what its values are, with as much of the middle of the name left out as makes it fit."""

    def shortened(kept: int) -> str:
        return f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}: {values}"

    if title_width(f"{name}: {values}") <= PANEL_WIDTH:
        return f"{name}: {values}"
    return shortened(bisect(range(1, len(name)), PANEL_WIDTH, key=lambda kept: title_width(shortened(kept))))
