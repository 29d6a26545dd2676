"""A sheet of pictures: black ground, true proportions at one scale, orientation letters, one colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from unoise_monai.render.png import figure_to_rgb

DPI = 100
GAP = 6
TITLE_HEIGHT = 26
BAR_WIDTH = 84
"""Pixels."""
SMALLEST_PANEL, LARGEST_PANEL = 360, 640
"""Pixels of the longest side of a sheet's panels; between the two, one for each voxel."""
SHEET_SHAPE = 1.6
"""Width to height that the sheet comes close to."""
TEXT_COLOUR = "#f2f2f2"
OUTLINE_COLOUR = "#00e5ff"


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet."""

    rgb: NDArray[Any]
    """``(rows, columns, 3)``, floats in [0, 1]."""
    title: str = ""
    outlines: list[NDArray[np.bool_]] = field(default_factory=list)
    """Regions to be outlined, each ``(rows, columns)``."""
    pixel_mm: tuple[float, float] | None = None
    """Height and width of a pixel, mm; the sheet's where it is None."""
    letters: dict[str, str] | None = None
    """What lies at the ``left``, ``right``, ``top`` and ``bottom`` edge; the sheet's where it is None."""


def panel_sizes(
    shapes: Sequence[tuple[int, int]], pixels_mm: Sequence[tuple[float, float]], longest: int
) -> list[tuple[int, int]]:
    """Heights and widths, in square pixels of one size in mm, of panels whose longest side is ``longest``.

    Args:
        shapes: rows and columns of each panel's picture.
        pixels_mm: height and width of each picture's pixels, mm.
        longest: pixels of the longest side of all.
    """
    pairs = zip(shapes, pixels_mm, strict=True)
    sides_mm = [(rows * height, columns * width) for (rows, columns), (height, width) in pairs]
    scale = longest / max(side for sides in sides_mm for side in sides)
    return [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in sides_mm]


def longest_side(panels: Sequence[Panel]) -> int:
    """Pixels of the panels' longest side that show every voxel, within ``SMALLEST_PANEL`` and ``LARGEST_PANEL``."""
    voxels = max(side for panel in panels for side in panel.rgb.shape[:2])
    return min(max(SMALLEST_PANEL, voxels), LARGEST_PANEL)


def sheet_columns(count: int, height: int, width: int) -> int:
    """Columns that bring a sheet of ``count`` panels closest to ``SHEET_SHAPE``, with few empty places."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / SHEET_SHAPE)) + 4 * (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)


def draw_panels(
    panels: Sequence[Panel],
    pixel_mm: tuple[float, float] = (1.0, 1.0),
    letters: dict[str, str] | None = None,
    colour_map: str | Colormap | None = None,
    colour_label: str = "",
    longest: int = 360,
) -> NDArray[np.uint8]:
    """Draw pictures on a sheet, all at the same number of mm a pixel.

    Args:
        panels: the pictures, from the top left; they may differ in shape.
        pixel_mm: height and width, mm, of the pixels of panels that do not say theirs; anisotropic pixels are
            resampled to square ones.
        letters: what lies at the ``left``, ``right``, ``top`` and ``bottom`` edge of panels that do not say theirs;
            none where it is None.
        colour_map: the colour map, or matplotlib's name of it, that a bar from 0 to 1 shows; no bar where it is None.
        colour_label: what the bar shows, with its unit.
        longest: pixels of the longest side of all panels.

    Returns:
        RGB, ``(H, W, 3)``.
    """
    shapes = [panel.rgb.shape[:2] for panel in panels]
    sizes = panel_sizes(shapes, [panel.pixel_mm or pixel_mm for panel in panels], longest)
    columns = sheet_columns(len(panels), max(height for height, _ in sizes), max(width for _, width in sizes))
    title = TITLE_HEIGHT if any(panel.title for panel in panels) else 0
    row_heights = [title + max(size[0] for size in sizes[k : k + columns]) for k in range(0, len(sizes), columns)]
    column_widths = [max(size[1] for size in sizes[k::columns]) for k in range(columns)]
    sheet_width = sum(column_widths) + GAP * (columns + 1) + (BAR_WIDTH if colour_map else 0)
    sheet_height = sum(row_heights) + GAP * (len(row_heights) + 1)
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="black")

    def place(left: int, top: int, box_width: int, box_height: int) -> Axes:
        bottom = sheet_height - top - box_height
        return figure.add_axes(
            (left / sheet_width, bottom / sheet_height, box_width / sheet_width, box_height / sheet_height)
        )

    for number, (panel, (height, width)) in enumerate(zip(panels, sizes, strict=True)):
        row, column = divmod(number, columns)
        left = GAP * (column + 1) + sum(column_widths[:column])
        top = GAP * (row + 1) + sum(row_heights[:row]) + title
        _draw_panel(place(left, top, width, height), panel, panel.letters or letters)
    if colour_map:
        length = min(sheet_height - 2 * GAP - title, 2 * longest)
        top = title + (sheet_height - title - length) // 2
        axes = place(sheet_width - BAR_WIDTH + GAP, top, 14, length)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colour_map), cax=axes)
        bar.set_label(colour_label, color=TEXT_COLOUR, fontsize=10)
        bar.ax.tick_params(colors=TEXT_COLOUR, labelsize=9)
        bar.outline.set_edgecolor(TEXT_COLOUR)
    return figure_to_rgb(figure)


def _draw_panel(axes: Axes, panel: Panel, letters: dict[str, str] | None) -> None:
    axes.set_axis_off()
    # Hanning is smooth where the panel is larger than the picture, and keeps fine structures where it is smaller.
    axes.imshow(panel.rgb, aspect="auto", interpolation="hanning")
    for region in panel.outlines:
        # A border of background, so that a region at the picture's edge is outlined there, too.
        ys, xs = (np.arange(-1, size + 1) for size in region.shape)
        axes.contour(xs, ys, np.pad(region, 1).astype(float), levels=[0.5], colors=OUTLINE_COLOUR, linewidths=0.8)
    axes.set_xlim(-0.5, panel.rgb.shape[1] - 0.5)
    axes.set_ylim(panel.rgb.shape[0] - 0.5, -0.5)
    text: dict[str, Any] = {"transform": axes.transAxes, "color": TEXT_COLOUR, "fontsize": 9}
    # A dark rim keeps the letters legible on bone and on bright MR.
    text["path_effects"] = [withStroke(linewidth=2, foreground="black")]
    if letters:
        axes.text(0.012, 0.5, letters["left"], ha="left", va="center", **text)
        axes.text(0.988, 0.5, letters["right"], ha="right", va="center", **text)
        axes.text(0.5, 0.988, letters["top"], ha="center", va="top", **text)
        axes.text(0.5, 0.012, letters["bottom"], ha="center", va="bottom", **text)
    if panel.title:
        axes.set_title(panel.title, color=TEXT_COLOUR, fontsize=11, pad=5)
