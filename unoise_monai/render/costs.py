"""What a score costs: one point a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unoise_monai.render.curves import COLOURS, MARKERS
from unoise_monai.render.png import figure_to_rgb


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
    for number, (name, (seconds, value)) in enumerate(points.items()):
        axes.plot(seconds, value, MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], markersize=6)
        axes.annotate(name, (seconds, value), xytext=(6, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="seconds a map", ylabel=score)
    low, high = values[:, 0].min(), values[:, 0].max()
    axes.set_xlim(low / 2, high * 8)  # room for the names
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure_to_rgb(figure)
