"""Where the pictures of a sheet lie: true proportions at one scale, room for titles, letters and the colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

DPI = 100
GAP = 6
TITLE_HEIGHT = 26
BAR_WIDTH = 84
BAR_LENGTH = 100
"""Pixels, the length at least, so that the bar's ticks stand apart."""
LETTERS_ROOM = 44
"""Pixels, across and down, that the letters at a picture's edges need to stand apart."""
TITLE_GAP = 16
"""Pixels between a title and the next one, beside the panels' gap."""
SMALLEST_PANEL, LARGEST_PANEL = 360, 640
"""Pixels of the longest side of a sheet's panels; between the two, one for each voxel."""
SHEET_SHAPE = 1.6
"""Width to height that the sheet comes close to."""
TITLE_FONT = FontProperties(size=11)
LABEL_FONT = FontProperties(size=10)
"""Of the panels' titles, and of the colour bar's label."""


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


def text_width(text: str, font: FontProperties) -> int:
    """Pixels across that a text takes."""
    points: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return math.ceil(points / 72 * DPI)


def title_width(title: str) -> int:
    """Pixels that a column needs for a title, none for none, to stand apart from the next one."""
    return text_width(title, TITLE_FONT) + TITLE_GAP if title else 0


def cell_size(size: tuple[int, int], title: str, lettered: bool, narrowest: int) -> tuple[int, int]:
    """Height and width of a panel's place: at least what its letters and its title need, or ``narrowest`` pixels."""
    letters = LETTERS_ROOM if lettered else 0
    return max(size[0], letters), max(size[1], letters, title_width(title), narrowest)


def sheet_columns(count: int, height: int, width: int) -> int:
    """Columns that bring a sheet of ``count`` panels closest to ``SHEET_SHAPE``, with few empty places."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / SHEET_SHAPE)) + 4 * (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)
