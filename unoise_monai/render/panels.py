"""Panels beside each other, with titles and a colour bar: the sheet that every picture is drawn on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from unoise_monai.render.canvas import (
    EDGE_LETTERS,
    Rgb,
    Spacing,
    Window,
    bar_colours,
    blend,
    figure_to_rgb,
    grey_levels,
    pixel_mm,
)

DPI = 100
# Pixels:
GAP, TITLE_HEIGHT, BAR_WIDTH = 6, 26, 84
BAR_LENGTH = 100
"""At least, so that the colour bar's ticks stand apart."""
LETTERS_ROOM = 44
"""Across and down, that the letters at a picture's edges need to stand apart."""
TITLE_GAP = 16
"""Between a title and the next one, beside the panels' gap."""
SMALLEST_PANEL, LARGEST_PANEL = 360, 640
"""Longest side of a sheet's panels; a pixel for each voxel between the two."""
SHEET_SHAPE = 1.6
"""Width to height that the sheet comes close to."""
TITLE_FONT, LABEL_FONT = FontProperties(size=11), FontProperties(size=10)
TEXT_COLOUR, OUTLINE_COLOUR = "#f2f2f2", "#00e5ff"

Sides = tuple[int, int]


def panel_sizes(shapes: Sequence[Sides], pixels_mm: Sequence[tuple[float, float]], longest: int) -> list[Sides]:
    """Heights and widths, in square pixels of one size in mm, of panels whose longest side is ``longest`` pixels.

    ``shapes`` are rows and columns of each picture, ``pixels_mm`` the height and width of its pixels, mm.
    """
    sides_mm = np.multiply(shapes, pixels_mm)
    sizes = np.maximum(1, np.round(sides_mm * (longest / sides_mm.max()))).astype(int)
    return [(height, width) for height, width in sizes.tolist()]


def text_width(text: str, font: FontProperties) -> int:
    """Pixels across that a text takes."""
    points: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return math.ceil(points / 72 * DPI)


def title_width(title: str) -> int:
    """Pixels that a column needs for a title, none for none, to stand apart from the next one."""
    return text_width(title, TITLE_FONT) + TITLE_GAP if title else 0


def cell_size(size: Sides, title: str, lettered: bool, narrowest: int) -> Sides:
    """Height and width of a panel's place, of ``narrowest`` pixels at least: room for its letters and its title."""
    letters = LETTERS_ROOM if lettered else 0
    return max(size[0], letters), max(size[1], letters, title_width(title), narrowest)


def sheet_columns(count: int, height: int, width: int) -> int:
    """Columns that bring a sheet of ``count`` panels closest to ``SHEET_SHAPE``, with few empty places."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / SHEET_SHAPE)) + 4 * (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)


class Panel(NamedTuple):
    """One picture of a sheet."""

    rgb: NDArray[Any]
    """``(rows, columns, 3)``, floats in [0, 1]."""
    title: str = ""
    outlines: Sequence[NDArray[np.bool_]] = ()
    """Regions to be outlined, each ``(rows, columns)``."""
    pixel_mm: tuple[float, float] | None = None
    """Height and width of a pixel, mm; the sheet's where it is None."""
    letters: dict[str, str] | None = None
    """What lies at the ``left``, ``right``, ``top`` and ``bottom`` edge; the sheet's where it is None."""


def longest_side(panels: Sequence[Panel]) -> int:
    """Pixels of the panels' longest side that show every voxel, within ``SMALLEST_PANEL`` and ``LARGEST_PANEL``."""
    voxels = max(side for panel in panels for side in panel.rgb.shape[:2])
    return min(max(SMALLEST_PANEL, voxels), LARGEST_PANEL)


class View(NamedTuple):
    """What one panel shows of a volume, each array ``(rows, columns)``, as ``display_slice`` turns it."""

    axis: int
    """That one looks along."""
    title: str
    pixels: NDArray[Any]
    """Intensities."""
    importance: NDArray[Any] | None = None
    """0 to 1."""
    outlines: Sequence[NDArray[np.bool_]] = ()


def draw_views(
    views: Sequence[View],
    spacing_mm: Spacing,
    window: Window,
    style: str = "colour",
    threshold: float = 0.1,
    label: str = "",
    longest: int | None = None,
) -> Rgb:
    """Draw views of one volume on a sheet, importance over grey, with a colour bar where there is importance.

    The arguments are those of ``mips`` and ``draw_panels``; without ``longest``, panels are of ``longest_side``.
    """
    panels = []
    for axis, title, pixels, importance, outlines in views:
        rgb = blend(grey_levels(pixels, window), importance, threshold, style)
        panels.append(Panel(rgb, title, outlines, pixel_mm(spacing_mm, axis), EDGE_LETTERS[axis]))
    bar = None if views[0].importance is None else bar_colours(threshold, style)
    return draw_panels(panels, colour_map=bar, colour_label=label, longest=longest or longest_side(panels))


def draw_panels(
    panels: Sequence[Panel],
    pixel_mm: tuple[float, float] = (1.0, 1.0),
    letters: dict[str, str] | None = None,
    colour_map: str | Colormap | None = None,
    colour_label: str = "",
    longest: int = 360,
    narrowest: int = 0,
) -> Rgb:
    """Draw pictures on a sheet, all at the same number of mm a pixel.

    A column is as wide as its titles need. A picture too small for its letters has them outside.

    Args:
        panels: the pictures, from the top left; they may differ in shape.
        pixel_mm: of panels without one; anisotropic pixels are resampled to square ones.
        letters: of panels without any.
        colour_map: the colour map, or matplotlib's name of it, that a bar from 0 to 1 shows; no bar where it is None.
        colour_label: what the bar shows, with its unit.
        longest: pixels of the longest side of all panels.
        narrowest: pixels that a column is wide at least, so that sheets whose titles differ are of one size.
    """
    shapes = [panel.rgb.shape[:2] for panel in panels]
    sizes = panel_sizes(shapes, [panel.pixel_mm or pixel_mm for panel in panels], longest)
    cells = [
        cell_size(size, panel.title, bool(panel.letters or letters), narrowest)
        for panel, size in zip(panels, sizes, strict=True)
    ]
    columns = sheet_columns(len(panels), max(height for height, _ in cells), max(width for _, width in cells))
    title = TITLE_HEIGHT if any(panel.title for panel in panels) else 0
    row_heights = [title + max(cell[0] for cell in cells[k : k + columns]) for k in range(0, len(cells), columns)]
    column_widths = [max(cell[1] for cell in cells[k::columns]) for k in range(columns)]
    sheet_width = sum(column_widths) + GAP * (columns + 1) + (BAR_WIDTH if colour_map else 0)
    rows_height = sum(row_heights) + GAP * (len(row_heights) + 1)
    bar_length = max(BAR_LENGTH, text_width(colour_label, LABEL_FONT)) if colour_map else 0
    sheet_height = max(rows_height, title + bar_length + 2 * GAP)
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="black")

    def place(left: int, top: int, box_width: int, box_height: int) -> Axes:
        bottom = sheet_height - top - box_height
        # Matplotlib rounds a side up: one that came out a hair too long would be drawn on a pixel more.
        width, height = (side - 1e-6 for side in (box_width, box_height))
        return figure.add_axes((left / sheet_width, bottom / sheet_height, width / sheet_width, height / sheet_height))

    for number, (panel, (height, width), (cell_height, _)) in enumerate(zip(panels, sizes, cells, strict=True)):
        row, column = divmod(number, columns)
        left = GAP * (column + 1) + sum(column_widths[:column]) + (column_widths[column] - width) // 2
        top = GAP * (row + 1) + sum(row_heights[:row]) + title + (cell_height - height) // 2
        top += (sheet_height - rows_height) // 2
        _draw_panel(place(left, top, width, height), panel, panel.letters or letters)
    if colour_map:
        length = min(sheet_height - 2 * GAP - title, max(2 * longest, bar_length))
        top = title + (sheet_height - title - length) // 2
        axes = place(sheet_width - BAR_WIDTH + GAP, top, 14, length)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colour_map), cax=axes)
        bar.set_label(colour_label, color=TEXT_COLOUR, fontproperties=LABEL_FONT)
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
    # How far the letters' room reaches beyond a picture that is smaller, as shares of its sides.
    width, height = axes.bbox.size
    across, down = (max(0.0, LETTERS_ROOM - side) / 2 / side for side in (width, height))
    if letters:
        axes.text(0.012 - across, 0.5, letters["left"], ha="left", va="center", **text)
        axes.text(0.988 + across, 0.5, letters["right"], ha="right", va="center", **text)
        axes.text(0.5, 0.988 + down, letters["top"], ha="center", va="top", **text)
        axes.text(0.5, 0.012 - down, letters["bottom"], ha="center", va="bottom", **text)
    if panel.title:
        pad = 5 + (down * height / DPI * 72 if letters else 0)
        axes.set_title(panel.title, color=TEXT_COLOUR, fontproperties=TITLE_FONT, pad=pad)
