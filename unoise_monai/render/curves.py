"""Curves of visibility, and rank against cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from unoise_monai.render.canvas import Rgb, figure_to_rgb

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")


def style(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of the curve or point of this number: no two of the first 147 are alike."""
    row = number // len(COLOURS)
    # Shifted by one a row, or every seventh would have the same marker as well as the same colour.
    return COLOURS[number % len(COLOURS)], MARKERS[(number + row) % len(MARKERS)], LINES[row % len(LINES)]


def new_axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    """A white figure of a size in inches, and its axes with a grid and no frame."""
    figure = Figure(figsize=size, dpi=200, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_visibility(
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    title: str = "",
    reference: float | None = None,
    measure: str = "Dice",
) -> Rgb:
    """Draw Dice, or another measure, against the share of voxels visible, a line for each method.

    Koker et al., "U-Noise", 2021, Fig. 3a.

    Args:
        curves: name to (share of voxels visible, measure), each 1-D, 0 to 1; drawn in the order of rising share.
        title: above the plot.
        reference: the measure with everything visible, drawn as a dashed line.
        measure: its name, for the axis.

    Raises:
        ValueError: when there is no curve, one is empty, not 1-D, or of two lengths, or a value leaves [0, 1].
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    if reference is not None:
        _check_unit("reference", np.asarray(reference))
    figure, axes = new_axes((6.6, 4.4))
    for number, (name, (shares, values)) in enumerate(curves.items()):
        x, y = np.asarray(shares, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape or x.size == 0:
            raise ValueError(f"curve {name!r} must be two 1-D arrays of one length, got {x.shape} and {y.shape}")
        _check_unit(f"share visible of {name!r}", x)
        _check_unit(f"{measure} of {name!r}", y)
        order = np.argsort(x, kind="stable")
        colour, marker, line = style(number)
        look = {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.8, "markersize": 5, "zorder": 3}
        axes.plot(100 * x[order], y[order], label=name, clip_on=False, **look)
    if reference is not None:
        axes.axhline(reference, color="#555555", linestyle="--", linewidth=1.2, label=f"all visible ({reference:.3f})")
    axes.set(xlim=(0, 100), ylim=(0, 1), xlabel="share of voxels visible (%)", ylabel=measure, title=title)
    axes.set_xticks(range(0, 101, 10))
    axes.set_yticks(np.linspace(0, 1, 6))
    if len(axes.lines) > 6:  # too many for a legend over the lines
        figure.legend(loc="outside right upper", fontsize=8, frameon=False, handlelength=3.2)
    else:
        axes.legend(loc="best", fontsize=9, framealpha=0.9, edgecolor="#dddddd")
    return figure_to_rgb(figure)


def _check_unit(name: str, values: NDArray[Any]) -> None:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{name} must be finite and lie in [0, 1], got {values.tolist()}")


MARKER = 6.0
"""Size of a point, in points."""
PLACES = ((6, 3), (6, -3), (-6, 3), (-6, -3))
"""Where a name may stand beside its point, in points; the first that is free is taken."""


def plot_costs(points: Mapping[str, tuple[float, float]], score: str) -> Rgb:
    """Draw a score, of this name, against seconds a map, on a logarithmic axis: ``points`` are (seconds, score).

    Each point has its method's name beside it, on no other point or name where there is such a place.

    Raises:
        ValueError: when there is no point, a time is not above 0, or a number not finite.
    """
    if not points:
        raise ValueError("points must hold at least one method, got none")
    values = np.array(list(points.values()), dtype=np.float64)
    if not np.isfinite(values).all() or values[:, 0].min() <= 0:
        raise ValueError(f"points must be finite, with seconds above 0, got {dict(points)}")
    figure, axes = new_axes((7.2, 4.8))
    for number, (seconds, value) in enumerate(values):
        colour, marker, _ = style(number)
        axes.plot(seconds, value, marker, color=colour, markersize=MARKER)
    axes.set(xscale="log", xlabel="seconds a map", ylabel=score)
    axes.set_xlim(values[:, 0].min() / 3, values[:, 0].max() * 5)  # room for the names
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout, in which names have a size
    half = MARKER / 2 * figure.dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in axes.transData.transform(values)]
    for name, point in zip(points, values, strict=True):
        text = axes.annotate(name, point, PLACES[0], textcoords="offset points", fontsize=8, in_layout=False)
        # The first once more at the end, for where none is free.
        for right, up in (*PLACES, PLACES[0]):
            text.set(ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top")
            text.xyann = right, up
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x0) and not box.count_overlaps(taken):
                break
        taken.append(box)
    return figure_to_rgb(figure)
