"""Charts and pictures of a case's page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.render.slices import DECILES, most_important

BINS = 20
COLOURS = {"inside": "#b4450b", "outside": "#1d63b8", "chance": "#8a909c", "soft": "#59616f", "line": "#dfe3ea"}
"""Of the style sheet's variables, in light; the page's own take their place."""
STYLES: dict[str, dict[str, Any]] = {
    "inside": {"linewidth": 2.2},
    "outside": {"linewidth": 2.2, "dashes": (3, 2)},
    "chance": {"linewidth": 1.2},
}
"""Of lines, by the name of their colour."""
PERCENT = {"xlim": (0, 100), "ylim": (0, 100)}
ONE_AT_A_TIME = Lock()
"""Settings of matplotlib are those of the whole process."""


class Chart(NamedTuple):
    """A chart, as a picture and as the table of its values."""

    title: str
    note: str
    svg: str
    """What follows ``<svg`` on a page, whose style sheet gives the colours in light and in dark."""
    heads: list[str]
    rows: list[list[str]]


def charts(importance: NDArray[Any], segmentation: NDArray[Any]) -> list[Chart]:
    """The two charts of a case, none where the segmentation is empty or fills the volume.

    Importance, 0 to 1, and class indices are ``(X, Y, Z)``; all classes above 0 count as inside.
    """
    inside = segmentation > 0
    if not inside.any() or inside.all():
        return []
    within, without = (100 * values for values in histograms(importance, inside))
    share, found = (100 * values for values in coverage(importance, inside))
    return [
        draw(
            "How important are the voxels?",
            "Share of the voxels of each importance, among those that were segmented and among all others.",
            (np.arange(BINS) + 0.5) / BINS,
            {"segmented": ("inside", within), "not segmented": ("outside", without)},
            {"xlabel": "importance", "ylabel": "share of voxels (%)", "xlim": (0, 1), "ylim": (0, None)},
        ),
        draw(
            "Do the most important voxels hold the segmentation?",
            "Share of the segmented voxels that are among the most important ones of the volume. A map that knows "
            "nothing of the segmentation follows the thin line.",
            share,
            {"this map": ("inside", found), "chance": ("chance", share)},
            {"xlabel": "most important voxels (%)", "ylabel": "segmented voxels among them (%)", **PERCENT},
        ),
    ]


def histograms(importance: NDArray[Any], inside: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Shares of the voxels in 20 equal steps of importance from 0 to 1, inside and outside; each sums to 1."""
    sides = (importance[inside], importance[~inside])
    return [np.histogram(values, bins=BINS, range=(0, 1))[0] / values.size for values in sides]


def coverage(importance: NDArray[Any], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of 0, 10, ... 100% of the volume's voxels, the most important ones: their share, and that of what is inside.

    Voxels as important as the last one are all taken, so the share of a map with ties can be larger.
    """
    visible = [most_important(importance, share) for share in DECILES]
    share = np.array([0.0, *(seen.mean() for seen in visible), 1.0])
    return share, np.array([0.0, *(seen[inside].mean() for seen in visible), 1.0])


def draw(
    title: str, note: str, x: NDArray[Any], lines: Mapping[str, tuple[str, NDArray[Any]]], axes: Mapping[str, Any]
) -> Chart:
    """Draw lines, name to (key of ``STYLES``, y); ``axes`` are matplotlib's properties of these names.

    The same lines give the same bytes: no date, no random names.
    """
    figure = Figure(figsize=(5.4, 3.3), layout="constrained", facecolor="none")
    plot: Any = figure.add_subplot(facecolor="none")
    for name, (style, y) in lines.items():
        look = {"color": COLOURS[style], "solid_capstyle": "round", **STYLES[style]}
        plot.plot(x, y, label=name, clip_on=False, **look)
    plot.set(**axes)
    plot.grid(axis="y", color=COLOURS["line"], linewidth=1)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0, pad=6, labelcolor=COLOURS["soft"])
    for axis in (plot.xaxis, plot.yaxis):
        axis.label.set_color(COLOURS["soft"])
    figure.legend(loc="outside upper left", ncols=len(lines), frameon=False, labelcolor=COLOURS["soft"])
    columns = ([f"{value:.3g}" for value in x], *([f"{value:.1f}" for value in y] for _, y in lines.values()))
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Chart(title, note, inline_svg(figure), [axes["xlabel"], *lines], rows)


def inline_svg(figure: Figure) -> str:
    """A figure as an element of a page, after ``<svg``: without ids, which two charts would share, and with the page's
    fonts and colours."""
    text = io.StringIO()
    with ONE_AT_A_TIME, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unoise"}):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"<defs>.*?</defs>", "", text.getvalue().partition("<svg")[2], flags=re.DOTALL)
    svg = re.sub(r' (?:id|xmlns\S*|width|height|version|clip-path)="[^"]*"| font-family: [^;]*;|<g/>', "", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return svg


THUMBNAIL = (336, 144)
"""Most pixels of a thumbnail, for screens of up to two pixels a CSS pixel."""
UNREADABLE_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of a file that is broken (a PNG by SyntaxError) or claims to be huge."""


class Picture(NamedTuple):
    """A picture of the report: its file's name, and its size in pixels, which keeps a page from jumping."""

    file: str
    width: int
    height: int


def copy_picture(source: Path, target: Path, most: tuple[int, int] = (1800, 1800)) -> Picture:
    """Write a picture as JPEG, at most so many pixels wide and high, without any text that its file holds.

    Raises:
        OSError: or another of ``UNREADABLE_PICTURE``, when ``source`` is no picture or is truncated.
    """
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(most, Image.Resampling.LANCZOS)
    # Rebuilt from its pixels: texts, dates and other fields of the source stay behind.
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    with atomic_path(target) as temporary:
        clean.save(temporary, format="JPEG", quality=88, subsampling=0, optimize=True)
    return Picture(target.name, *clean.size)
