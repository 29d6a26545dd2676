"""From intensities to grey levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_PERCENTILES = (1, 99)
SAMPLE_SIZE = 2**20
"""About how many voxels, evenly spread, the percentiles of a larger image are taken of."""


def find_window(image: NDArray[Any], window: tuple[float, float] | None = None) -> tuple[float, float]:
    """The intensities that turn black and white: those asked for, or those that suit the image.

    These are its 1st and 99th percentile. Where more than half of the image holds its lowest value, as an angiogram
    without its soft tissue or a brain without its skull, that value turns black and the 99th percentile of all others
    white. Of a large image every n-th voxel along each axis is looked at.

    Args:
        image: intensities, of any shape.
        window: intensities that turn black and white; found in the image where it is None.

    Raises:
        ValueError: when ``window`` is not two finite numbers in rising order.
    """
    if window is not None:
        return check_window(window)
    step = math.ceil((image.size / SAMPLE_SIZE) ** (1 / image.ndim))
    sample = image[(slice(None, None, step),) * image.ndim]
    low, high = (float(level) for level in np.percentile(sample, WINDOW_PERCENTILES))
    background = float(sample.min())
    others = sample[sample > background]
    if others.size < sample.size / 2:
        low = background
        # What is bright may lie between the voxels looked at.
        high = float(np.percentile(others, WINDOW_PERCENTILES[1]) if others.size else image.max())
    return low, high if high > low else low + 1


def grey_levels(image: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Intensities as grey, 0 (black) to 1 (white).

    Args:
        image: intensities, of any shape.
        window: as in ``find_window``.

    Raises:
        ValueError: when ``window`` is not two finite numbers in rising order.
    """
    low, high = find_window(image, window)
    return ((np.asarray(image, dtype=np.float64) - low) / (high - low)).clip(0, 1)


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """Refuse a window that is not ``low < high``, both finite, in the image's intensities.

    Raises:
        ValueError: when it is not.
    """
    if len(window) != 2 or not all(math.isfinite(level) for level in window) or window[0] >= window[1]:
        raise ValueError(f"window must be (low, high), finite, with low below high, got {tuple(window)}")
    return float(window[0]), float(window[1])
