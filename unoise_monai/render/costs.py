"""What a score costs: one point a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from unoise_monai.render.curves import style
from unoise_monai.render.png import figure_to_rgb

MARKER = 6.0
"""Size of a point, in points."""
PLACES = (
    ((6, 3), "left", "bottom"),
    ((6, -3), "left", "top"),
    ((-6, 3), "right", "bottom"),
    ((-6, -3), "right", "top"),
)
"""Where a name may stand beside its point, in points, and how it is aligned there; the first that is free."""


def plot_costs(points: Mapping[str, tuple[float, float]], score: str) -> NDArray[np.uint8]:
    """Draw a score against seconds a map, on a logarithmic axis, each point with its method's name.

    Args:
        points: name to (seconds, score).
        score: what the score is, for the axis.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when there is no point, a time is not above 0, or a number not finite.
    """
    if not points:
        raise ValueError("points must hold at least one method, got none")
    values = np.array(list(points.values()), dtype=np.float64)
    if not np.isfinite(values).all() or values[:, 0].min() <= 0:
        raise ValueError(f"points must be finite, with seconds above 0, got {dict(points)}")
    figure = Figure(figsize=(7.2, 4.8), dpi=200, layout="constrained", facecolor="white")
    axes: Any = figure.add_subplot()
    for number, (seconds, value) in enumerate(values):
        colour, marker, _ = style(number)
        axes.plot(seconds, value, marker, color=colour, markersize=MARKER)
    axes.set(xscale="log", xlabel="seconds a map", ylabel=score)
    axes.set_xlim(values[:, 0].min() / 3, values[:, 0].max() * 5)  # room for the names
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _write_names(figure, axes, list(points), values)
    return figure_to_rgb(figure)


def _write_names(figure: Figure, axes: Any, names: Sequence[str], values: NDArray[np.float64]) -> None:
    """Write each name beside its point, on no other point or name where there is such a place."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout, in which names have a size
    half = MARKER / 2 * figure.dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in axes.transData.transform(values)]
    for name, point in zip(names, values, strict=True):
        text = axes.annotate(name, point, PLACES[0][0], textcoords="offset points", fontsize=8, in_layout=False)
        # The first once more at the end, for where none is free.
        for offset, across, up in (*PLACES, PLACES[0]):
            text.set(ha=across, va=up)
            text.xyann = offset
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x0) and not box.count_overlaps(taken):
                break
        taken.append(box)
