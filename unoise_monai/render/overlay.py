"""A map in colour over the patient's scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, ListedColormap
from numpy.typing import NDArray

from unoise_monai.checks import check_choice

STYLES = ("colour", "red")
COLOUR_MAP = "inferno"
"""Perceptually uniform: equal steps of importance look equally large."""
OPACITY = 0.75
"""Of the colour where importance is 1."""
RED = (1.0, 0.0, 0.0)


def blend(
    grey: NDArray[Any], importance: NDArray[Any] | None, threshold: float = 0.1, style: str = "colour"
) -> NDArray[np.float64]:
    """Lay importance over grey.

    - ``colour``: a perceptually uniform colour map, the more opaque the higher importance is, and not there at all up
      to the threshold.
    - ``red``: from the untouched grey at 0 to pure red at 1, with no threshold. Chatterjee et al., "Interpretability
      techniques for deep learning based segmentation models", ISMRM 2021, Fig. 2 to 4: the map drawn from black to
      white, "white pixels were converted to red for overlaying".

    Args:
        grey: ``(rows, columns)``, 0 to 1.
        importance: ``(rows, columns)``, 0 to 1; the grey stays alone where it is None.
        threshold: importance up to which ``colour`` shows the grey alone.
        style: one of ``STYLES``.

    Returns:
        RGB, ``(rows, columns, 3)``, 0 to 1.

    Raises:
        ValueError: when ``style`` is unknown, or ``threshold`` is not in [0, 1).
    """
    check_style(style, threshold)
    ground = np.repeat(np.asarray(grey, dtype=np.float64)[..., None], 3, axis=2)
    if importance is None:
        return ground
    values = np.asarray(importance, dtype=np.float64).clip(0, 1)
    if style == "red":
        alpha, colour = values[..., None], np.asarray(RED)
    else:
        alpha = OPACITY * ((values - threshold) / (1 - threshold)).clip(0, 1)[..., None]
        colour = mpl.colormaps[COLOUR_MAP](values)[..., :3]
    blended: NDArray[np.float64] = (1 - alpha) * ground + alpha * colour
    return blended


def bar_colours(threshold: float = 0.1, style: str = "colour") -> Colormap:
    """The colours, for importance from 0 to 1, that ``blend`` gives where the scan is mid-grey."""
    return ListedColormap(blend(np.full((1, 256), 0.5), np.linspace(0, 1, 256)[None], threshold, style)[0])


def scale_map(values: NDArray[Any], limits: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Scale a map of any range to 0 to 1, as an overlay needs it.

    Args:
        values: an attribution or an activation, of any shape.
        limits: values that turn 0 and 1, what lies beyond is clipped; the map's lowest and highest where it is None.

    Returns:
        float32, of the same shape.

    Raises:
        ValueError: when a value is NaN or infinite.
        ValueError: when ``limits`` is not two finite numbers in rising order.
        ValueError: when all values are the same and there are no ``limits`` to scale them by.
    """
    lowest, highest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("map must hold finite values only, got NaN or infinity")
    if limits is not None:
        if len(limits) != 2 or not np.isfinite(limits).all() or limits[0] >= limits[1]:
            raise ValueError(f"limits must be (low, high), finite, with low below high, got {tuple(limits)}")
        lowest, highest = (float(limit) for limit in limits)
    if lowest == highest:
        raise ValueError(f"map must hold more than one value to be scaled without limits, got {lowest} everywhere")
    return np.asarray((values - lowest) / (highest - lowest), dtype=np.float32).clip(0, 1)


def check_style(style: str, threshold: float = 0.0) -> None:
    """Refuse an unknown style and a threshold outside [0, 1).

    Raises:
        ValueError: when ``style`` is unknown, or ``threshold`` is not in [0, 1).
    """
    check_choice("style", style, STYLES)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}")
