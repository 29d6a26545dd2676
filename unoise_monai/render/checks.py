"""What every picture refuses to draw, in one place, each volume looked at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_choice
from unoise_monai.render.grey import check_window
from unoise_monai.render.overlay import check_style

RANGE_SLACK = 1e-3
"""How far resampling may have carried importance out of [0, 1]; it is clipped there."""


def check_picture(
    spacing_mm: tuple[float, float, float],
    axis: int,
    image: NDArray[Any],
    importance: NDArray[Any] | None = None,
    segmentation: NDArray[Any] | None = None,
    window: tuple[float, float] | None = None,
    style: str = "colour",
    threshold: float = 0.0,
) -> None:
    """Refuse what cannot be drawn; the arguments are those of the pictures of these names.

    Raises:
        ValueError: when ``image`` is not 3-D or empty, another volume has another shape, or one holds NaN or infinity.
        ValueError: when all of the image's voxels hold the same value, or ``importance`` leaves [0, 1].
        ValueError: when ``axis``, ``spacing_mm``, ``window``, ``style`` or ``threshold`` is out of range.
    """
    check_view(spacing_mm, axis, window)
    check_style(style, threshold)
    low, high = check_volume("image", image)
    if low == high:
        raise ValueError(f"image must hold more than one value, got {low} in every voxel")
    for name, volume in (("importance", importance), ("segmentation", segmentation)):
        if volume is not None and volume.shape != image.shape:
            raise ValueError(f"{name} must be of the image's shape {image.shape}, got {volume.shape}")
    if importance is not None:
        _check_unit_range(*check_volume("importance", importance))
    if segmentation is not None and segmentation.dtype.kind == "f":
        check_volume("segmentation", segmentation)


def check_view(spacing_mm: tuple[float, float, float], axis: int, window: tuple[float, float] | None = None) -> None:
    """Refuse a view that no volume can be seen in.

    Raises:
        ValueError: when ``axis`` is not 0, 1 or 2, or ``spacing_mm`` is not three finite numbers above 0.
        ValueError: when ``window`` is not two finite numbers in rising order.
    """
    check_choice("axis", axis, (0, 1, 2))
    if len(spacing_mm) != 3 or not all(np.isfinite(size) and size > 0 for size in spacing_mm):
        raise ValueError(f"spacing_mm must be three finite numbers above 0, got {spacing_mm}")
    if window is not None:
        check_window(window)


def check_volume(name: str, volume: NDArray[Any]) -> tuple[Any, Any]:
    """The lowest and the highest value of a volume that can be drawn.

    Raises:
        ValueError: when it is not 3-D, is empty, or holds NaN or infinity.
    """
    if volume.ndim != 3 or volume.size == 0:
        raise ValueError(f"{name} must be 3-D and not empty, got shape {volume.shape}")
    # The extremes tell, without a copy of the volume: NaN is both, infinity one of them.
    low, high = volume.min(), volume.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} must hold finite values only, got NaN or infinity")
    return low, high


def check_importance(importance: NDArray[Any]) -> NDArray[np.float64]:
    """Importance as float64, clipped where resampling carried it out of [0, 1] by at most 1e-3.

    Raises:
        ValueError: when a value lies further outside [0, 1], or is NaN.
    """
    _check_unit_range(importance.min(), importance.max())
    return np.asarray(importance, dtype=np.float64).clip(0, 1)


def _check_unit_range(lowest: float, highest: float) -> None:
    if not (lowest >= -RANGE_SLACK and highest <= 1 + RANGE_SLACK):
        raise ValueError(f"importance must lie in [0, 1], got values from {lowest} to {highest}")
