"""From a matplotlib figure to an RGB array, and from there to a file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path


def figure_to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure, without a window or pyplot's global state, as ``(H, W, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def save_png(rgb: NDArray[Any], path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all.

    Args:
        rgb: ``(H, W, 3)``, uint8.
        path: the file to write; missing folders are created.

    Raises:
        ValueError: when ``rgb`` is not uint8 of shape ``(H, W, 3)``.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb must be uint8 of shape (H, W, 3), got {rgb.dtype} of shape {rgb.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")
