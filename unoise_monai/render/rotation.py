"""A maximum intensity projection that turns, frame by frame, for slides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.render.checks import check_picture
from unoise_monai.render.grey import grey_levels
from unoise_monai.render.layout import title_width
from unoise_monai.render.overlay import bar_colours, blend
from unoise_monai.render.panels import Panel, draw_panels
from unoise_monai.render.turning import turned_mips, view_letters


def rotating_mip(
    image: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    frames: int = 36,
    axis: int = 2,
    importance: NDArray[Any] | None = None,
    window: tuple[float, float] | None = None,
    style: str = "colour",
    threshold: float = 0.1,
    label: str = "importance, 0 to 1",
    longest: int = 512,
) -> NDArray[np.uint8]:
    """Turn a volume once around, as maximum intensity projections for ``save_animation``.

    The first frame looks from the front (A): head up, the patient's right on the left. The viewer then walks by the
    patient's left (L, at 90 degrees), back and right. Around axis 0 the viewer goes from the front (A) below the feet
    (I), around axis 1 from below (I, front up) to the left (L). Titles and letters at the edges say so, the main
    direction first: "AL" is the front, somewhat from the left. At 0 and 90 degrees the pictures are plain projections
    as ``display_slice`` turns them: around axis 2 coronal and sagittal, around axis 0 coronal and axial.

    With importance, a pixel has the colour of the voxel that it shows, the brightest one of its ray: colour lies on
    the vessel that one sees, and importance of what lies hidden before or behind it is not shown.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        spacing_mm: the voxels' size along X, Y and Z, mm; their true proportions are kept.
        frames: pictures in one turn.
        axis: the axis of rotation: 2 the patient's long axis, 0 from right to left, 1 from front to back.
        importance: ``(X, Y, Z)``, 0 to 1.
        window: intensities that turn black and white; found in all projections where it is None (``find_window``).
        style: of the importance, one of ``overlay.STYLES``.
        threshold: importance up to which ``style="colour"`` shows the scan alone.
        label: what the colour bar shows, with its unit.
        longest: pixels of a picture's longer side. In a volume of more voxels a pixel shows the brightest one of the
            several that it covers, so that thin vessels survive.

    Returns:
        RGB, ``(N, H, W, 3)``.

    Raises:
        ValueError: when the volumes differ in shape, are not 3-D, are empty, or hold values that are not finite.
        ValueError: when all of the image's voxels hold the same value, or ``importance`` leaves [0, 1].
        ValueError: when ``frames`` is below 1, or ``longest`` is below 16.
        ValueError: when ``axis``, ``spacing_mm``, ``window`` or ``threshold`` is out of range, or ``style`` unknown.
    """
    check_picture(spacing_mm, axis, image, importance, None, window, style, threshold)
    for name, value, lowest in (("frames", frames, 1), ("longest", longest, 16)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")

    degrees = [360 * number / frames for number in range(frames)]
    size_mm = [count * size for count, size in zip(image.shape, spacing_mm, strict=True)]
    extent_mm = max(size_mm.pop(axis), math.hypot(*size_mm))
    turn = turned_mips(image, spacing_mm, degrees, axis, importance, extent_mm / longest)
    grey = np.zeros(turn.peaks.shape)
    inside = np.isfinite(turn.peaks)
    grey[inside] = grey_levels(turn.peaks[inside], window)
    bar = None if importance is None else bar_colours(threshold, style)
    views = [view_letters(angle, axis) for angle in degrees]
    titles = [f"from {viewer}, {angle:.0f}°" for (viewer, _), angle in zip(views, degrees, strict=True)]
    widest = max(title_width(title) for title in titles)
    pictures = []
    for number, (title, (_, edges)) in enumerate(zip(titles, views, strict=True)):
        shares = None if turn.shares is None else turn.shares[number]
        panel = Panel(blend(grey[number], shares, threshold, style), title)
        pictures.append(draw_panels([panel], turn.pixel_mm, edges, bar, label, longest, widest))
    return np.stack(pictures)
