"""A sheet of slices: black ground, true proportions, orientation letters, one colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from unoise_monai.render.png import figure_to_rgb

DPI = 100
GAP = 6
TITLE_HEIGHT = 26
BAR_WIDTH = 84
"""Pixels."""
SHEET_SHAPE = 1.6
"""Width to height that the sheet comes close to."""
TEXT_COLOUR = "#f2f2f2"
OUTLINE_COLOUR = "#00e5ff"


@dataclass(frozen=True)
class Panel:
    """One slice of a sheet."""

    rgb: NDArray[Any]
    """``(rows, columns, 3)``, floats in [0, 1]."""
    title: str = ""
    outlines: list[NDArray[np.bool_]] = field(default_factory=list)
    """Regions to be outlined, each ``(rows, columns)``."""


def grey_levels(image: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Intensities as grey, 0 (black) to 1 (white).

    Args:
        image: intensities, of any shape.
        window: intensities that turn black and white; the 1st and 99th percentile where it is None, or, where these
            are equal, the lowest and the highest.

    Raises:
        ValueError: when ``window`` is not two finite numbers in rising order.
    """
    if window is None:
        low, high = (float(value) for value in np.percentile(image, (1, 99)))
        if high <= low:  # nearly all of it one value, as in an angiogram without its soft tissue
            low, high = float(image.min()), float(image.max())
        high = high if high > low else low + 1
    else:
        low, high = check_window(window)
    return ((np.asarray(image, dtype=np.float64) - low) / (high - low)).clip(0, 1)


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """Refuse a window that is not ``low < high``, both finite, in the image's intensities.

    Raises:
        ValueError: when it is not.
    """
    if len(window) != 2 or not all(math.isfinite(level) for level in window) or window[0] >= window[1]:
        raise ValueError(f"window must be (low, high), finite, with low below high, got {tuple(window)}")
    return float(window[0]), float(window[1])


def panel_size(shape: tuple[int, int], pixel_mm: tuple[float, float], longest: int) -> tuple[int, int]:
    """Height and width, in square pixels, of a panel whose longer side is ``longest``, in true proportions."""
    height_mm, width_mm = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = longest / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def sheet_columns(count: int, height: int, width: int) -> int:
    """Columns that bring a sheet of ``count`` panels closest to ``SHEET_SHAPE``, with few empty places."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / SHEET_SHAPE)) + 4 * (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)


def draw_panels(
    panels: Sequence[Panel],
    pixel_mm: tuple[float, float],
    letters: dict[str, str],
    colour_map: str | None = None,
    colour_label: str = "",
    longest: int = 360,
) -> NDArray[np.uint8]:
    """Draw slices of one shape on a sheet.

    Args:
        panels: the slices, from the top left.
        pixel_mm: height and width of their pixels, mm; anisotropic ones are resampled to square pixels.
        letters: what lies at the ``left``, ``right``, ``top`` and ``bottom`` edge.
        colour_map: matplotlib's name of the colour map that a bar from 0 to 1 shows; no bar where it is None.
        colour_label: what the bar shows, with its unit.
        longest: pixels of a panel's longer side.

    Returns:
        RGB, ``(H, W, 3)``.
    """
    height, width = panel_size(panels[0].rgb.shape[:2], pixel_mm, longest)
    columns = sheet_columns(len(panels), height, width)
    rows = -(-len(panels) // columns)
    title = TITLE_HEIGHT if any(panel.title for panel in panels) else 0
    sheet_width = columns * (width + GAP) + GAP + (BAR_WIDTH if colour_map else 0)
    sheet_height = rows * (height + title + GAP) + GAP
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="black")

    def place(left: int, top: int, box_width: int, box_height: int) -> Axes:
        bottom = sheet_height - top - box_height
        return figure.add_axes(
            (left / sheet_width, bottom / sheet_height, box_width / sheet_width, box_height / sheet_height)
        )

    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        axes = place(GAP + column * (width + GAP), GAP + row * (height + title + GAP) + title, width, height)
        _draw_panel(axes, panel, letters)
    if colour_map:
        length = min(sheet_height - 2 * GAP - title, 2 * longest)
        top = title + (sheet_height - title - length) // 2
        axes = place(sheet_width - BAR_WIDTH + GAP, top, 14, length)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colour_map), cax=axes)
        bar.set_label(colour_label, color=TEXT_COLOUR, fontsize=10)
        bar.ax.tick_params(colors=TEXT_COLOUR, labelsize=9)
        bar.outline.set_edgecolor(TEXT_COLOUR)
    return figure_to_rgb(figure)


def _draw_panel(axes: Axes, panel: Panel, letters: dict[str, str]) -> None:
    axes.set_axis_off()
    # Hanning is smooth where the panel is larger than the slice, and keeps fine structures where it is smaller.
    axes.imshow(panel.rgb, aspect="auto", interpolation="hanning")
    for region in panel.outlines:
        # A border of background, so that a region at the picture's edge is outlined there, too.
        ys, xs = (np.arange(-1, size + 1) for size in region.shape)
        axes.contour(xs, ys, np.pad(region, 1).astype(float), levels=[0.5], colors=OUTLINE_COLOUR, linewidths=1.1)
    axes.set_xlim(-0.5, panel.rgb.shape[1] - 0.5)
    axes.set_ylim(panel.rgb.shape[0] - 0.5, -0.5)
    text: dict[str, Any] = {"transform": axes.transAxes, "color": TEXT_COLOUR, "fontsize": 9}
    # A dark rim keeps the letters legible on bone and on bright MR.
    text["path_effects"] = [withStroke(linewidth=2, foreground="black")]
    axes.text(0.012, 0.5, letters["left"], ha="left", va="center", **text)
    axes.text(0.988, 0.5, letters["right"], ha="right", va="center", **text)
    axes.text(0.5, 0.988, letters["top"], ha="center", va="top", **text)
    axes.text(0.5, 0.012, letters["bottom"], ha="center", va="bottom", **text)
    if panel.title:
        axes.set_title(panel.title, color=TEXT_COLOUR, fontsize=11, pad=5)
