"""Charts and pictures of a case's page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.render.slices import DECILES, most_important

BINS = 20
WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
"""Margins around the plot, CSS pixels."""


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    style: str
    """A class of the style sheet, which gives the colour in light and in dark."""
    x: NDArray[Any]
    y: NDArray[Any]


class Tick(NamedTuple):
    """A mark of an axis: where, CSS pixels, and what it says."""

    at: float
    text: str


class Chart(NamedTuple):
    """A chart as the page draws it, in CSS pixels."""

    title: str
    note: str
    x_label: str
    y_label: str
    paths: list[tuple[str, str, str]]
    """Name, style, and the points of each line."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    rows: list[list[str]]
    """The same as a table: for each mark of x what each line says."""


def charts(importance: NDArray[Any], segmentation: NDArray[Any]) -> list[Chart]:
    """The two charts of a case; none where the segmentation is empty or fills the volume.

    Args:
        importance: ``(X, Y, Z)``, 0 to 1.
        segmentation: class indices, ``(X, Y, Z)``; all above 0 count as inside.
    """
    inside = segmentation > 0
    if not inside.any() or inside.all():
        return []
    middle = (np.arange(BINS) + 0.5) / BINS
    within, without = histograms(importance, inside)
    share, found = coverage(importance, inside)
    return [
        draw(
            "How important are the voxels?",
            "Share of the voxels of each importance, among those that were segmented and among all others.",
            "importance",
            "share of voxels (%)",
            [
                Line("segmented", "inside", middle, 100 * within),
                Line("not segmented", "outside", middle, 100 * without),
            ],
            (0, 1),
        ),
        draw(
            "Do the most important voxels hold the segmentation?",
            "Share of the segmented voxels that are among the most important ones of the volume. A map that knows "
            "nothing of the segmentation follows the thin line.",
            "most important voxels (%)",
            "segmented voxels among them (%)",
            [Line("this map", "inside", 100 * share, 100 * found), Line("chance", "chance", 100 * share, 100 * share)],
            (0, 100),
            (0, 100),
        ),
    ]


def histograms(importance: NDArray[Any], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the voxels in 20 equal steps of importance from 0 to 1, inside and outside; each sums to 1."""

    def of(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.histogram(values, bins=BINS, range=(0, 1))[0] / values.size

    return of(importance[inside]), of(importance[~inside])


def coverage(importance: NDArray[Any], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of 0, 10, ... 100% of the volume's voxels, the most important ones: their share, and that of what is inside.

    Voxels as important as the last one are all taken, so the share of a map with ties can be larger.
    """
    visible = [most_important(importance, share) for share in DECILES]
    share = [0.0, *(float(seen.mean()) for seen in visible), 1.0]
    found = [0.0, *(float(seen[inside].mean()) for seen in visible), 1.0]
    return np.array(share), np.array(found)


def draw(
    title: str,
    note: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    x_range: tuple[float, float],
    y_range: tuple[float, float] | None = None,
) -> Chart:
    """Lay lines out on a chart; from 0 to a round number above all of them where there is no ``y_range``."""
    if y_range is None:
        highest = max(float(line.y.max()) for line in lines)
        y_range = (0.0, next(top for top in (5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0) if top >= highest or top == 100))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(value: float) -> float:
        return round(LEFT + wide * (value - x_range[0]) / (x_range[1] - x_range[0]), 1)

    def up(value: float) -> float:
        return round(TOP + high * (1 - (value - y_range[0]) / (y_range[1] - y_range[0])), 1)

    paths = [
        (line.name, line.style, " ".join(f"{across(x)},{up(y)}" for x, y in zip(line.x, line.y, strict=True)))
        for line in lines
    ]
    x_ticks = [Tick(across(value), f"{value:g}") for value in np.linspace(*x_range, 6).round(6)]
    y_ticks = [Tick(up(value), f"{value:g}") for value in np.linspace(*y_range, 5).round(6)]
    rows = [
        [f"{x:.3g}", *(f"{y:.1f}" for y in ys)] for x, *ys in zip(lines[0].x, *(line.y for line in lines), strict=True)
    ]
    return Chart(title, note, x_label, y_label, paths, x_ticks, y_ticks, rows)


LONGEST = 1800
"""Pixels of a picture's longer side on a case's page."""
THUMBNAIL = (336, 144)
"""Most pixels of a thumbnail, for screens of up to two pixels a CSS pixel."""
QUALITY = 88
UNREADABLE_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of a file that is broken (a PNG by SyntaxError) or claims to be huge."""


class Picture(NamedTuple):
    """A picture of the report: its file's name, and its size in pixels, which keeps a page from jumping."""

    file: str
    width: int
    height: int


def copy_picture(source: Path, target: Path, most: tuple[int, int] = (LONGEST, LONGEST)) -> Picture:
    """Write a picture as JPEG, at most so large, without any text that its file holds.

    Args:
        source: any picture that Pillow reads.
        target: the file to write, ends in ``.jpg``.
        most: width and height, pixels, that it is shrunk to fit in.

    Raises:
        OSError: when ``source`` is no picture or is truncated.
    """
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(most, Image.Resampling.LANCZOS)
    # Rebuilt from its pixels: texts, dates and other fields of the source stay behind.
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    with atomic_path(target) as temporary:
        clean.save(temporary, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return Picture(target.name, *clean.size)
