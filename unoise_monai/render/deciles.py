"""One slice, or one projection, with only the most important voxels visible, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_fraction
from unoise_monai.render.canonical import EDGE_LETTERS, display_slice, pixel_mm, upright
from unoise_monai.render.checks import check_picture
from unoise_monai.render.grey import find_window, grey_levels
from unoise_monai.render.overlay import blend
from unoise_monai.render.panels import Panel, draw_panels
from unoise_monai.render.projection import project

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PAPER_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
"""Of the tolerance B, in the paper's Fig. 3b."""


def most_important(importance: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """The given share of the volume's voxels, the most important ones.

    Voxels as important as the last one that fits are all taken: which voxels are visible never depends on the order
    that they are stored in, and a map with ties can show more than the share.

    Args:
        importance: of any shape.
        share: above 0, at most 1.

    Raises:
        ValueError: when ``share`` is not above 0 and at most 1.
    """
    check_fraction("share", share)
    kept = max(1, round(share * importance.size))
    cut = np.partition(importance, importance.size - kept, axis=None)[importance.size - kept]
    return np.asarray(importance >= cut)


def decile_pictures(
    image: NDArray[Any],
    importance: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    axis: int = 2,
    index: int | None = None,
    shares: Sequence[float] = DECILES,
    thresholds: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    mip: bool = False,
) -> NDArray[np.uint8]:
    """Show one slice with only the most important voxels of the volume visible, the others black, and then all of it.

    With ``mip`` the maximum intensity projection of the visible voxels takes the slice's place: vessels leave a slice
    after a few voxels.

    Koker et al., "U-Noise", 2021, Fig. 3b, which takes ``thresholds=PAPER_THRESHOLDS``, voxels of at most that
    tolerance; shares of the volume's voxels otherwise. Each panel's title says the share of the volume that it shows.
    The display convention is that of ``display_slice``.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        importance: ``(X, Y, Z)``, 0 to 1.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        axis: 0 sagittal, 1 coronal, 2 axial.
        index: which slice; the one with the highest sum of importance where it is None.
        shares: shares of the voxels, each above 0 and at most 1.
        thresholds: highest tolerance B = 1 - importance of the visible voxels, used in place of ``shares``.
        window: intensities that turn black and white; found in the image, or in its projection, where it is None.
        mip: project the visible voxels along the axis, in place of showing a slice.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite.
        ValueError: when the image holds one value only, or ``importance`` leaves [0, 1].
        ValueError: when a share is not above 0 and at most 1, or a threshold is not in [0, 1].
        ValueError: when ``axis``, ``index``, ``spacing_mm`` or ``window`` is out of range.
    """
    check_picture(spacing_mm, axis, image, importance, None, window)
    for share in shares if thresholds is None else ():
        check_fraction("share", share)
    for threshold in thresholds if thresholds is not None else ():
        if not 0 <= threshold <= 1:
            raise ValueError(f"thresholds must lie in [0, 1], got {threshold}")
    values = np.clip(importance, 0, 1, dtype=np.float32)
    if index is None:
        index = _most_important_slice(values, axis)
    if not 0 <= index < image.shape[axis]:
        raise ValueError(f"index must be at least 0 and below {image.shape[axis]}, got {index}")

    window = find_window(project(image, axis) if mip else image, window)
    darkest = image.min()
    panels = []
    for title, visible in _steps(values, shares, thresholds):
        if mip:
            # Hidden voxels are black, so below every visible one.
            shown, seen = upright(image.max(axis, where=visible, initial=darkest)), project(visible, axis)
        else:
            shown, seen = display_slice(image, axis, index), display_slice(visible, axis, index)
        panels.append(Panel(blend(grey_levels(shown, window) * seen, None), title))
    return draw_panels(panels, pixel_mm(spacing_mm, axis), EDGE_LETTERS[axis], longest=280)


def _steps(
    importance: NDArray[np.float32], shares: Sequence[float], thresholds: Sequence[float] | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The title of each panel and the voxels that it shows, one after the other: masks of large volumes are large."""
    if thresholds is None:
        for share in shares:
            visible = most_important(importance, share)
            ties = "" if visible.mean() - share < 0.005 else f" (ties: {_percent(visible.mean())})"
            yield f"top {_percent(share)}{ties}", visible
    else:
        for threshold in thresholds:
            # The importance is compared, not 1 - importance, whose rounding would move voxels on the threshold.
            visible = importance >= np.float32(1 - threshold)
            yield f"B ≤ {threshold:g} ({_percent(visible.mean())})", visible
    yield "all", np.ones(importance.shape, dtype=bool)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def _most_important_slice(importance: NDArray[np.float32], axis: int) -> int:
    others = tuple(other for other in range(3) if other != axis)
    score = importance.sum(axis=others, dtype=np.float64)
    best = np.flatnonzero(np.isclose(score, score.max()))
    return int(best[len(best) // 2])
