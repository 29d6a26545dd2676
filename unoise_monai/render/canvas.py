"""What all pictures share: axes, grey values, colours, checks, PNG."""

import math
import os
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.data.nifti import check_affine

Volume = NDArray[Any]
"""``(X, Y, Z)``, in RAS order where nothing else is written."""
Spacing = tuple[float, float, float]
"""The voxels' size along X, Y and Z, mm."""
Window = tuple[float, float]
"""Intensities that turn black and white."""
Rgb = NDArray[np.uint8]
"""``(H, W, 3)``."""


def figure_to_rgb(figure: Figure) -> Rgb:
    """Draw a figure, without a window or pyplot's global state, as ``(H, W, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def save_png(rgb: NDArray[Any], path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all; missing folders are created.

    Raises:
        ValueError: when ``rgb`` is not uint8 of shape ``(H, W, 3)``.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb must be uint8 of shape (H, W, 3), got {rgb.dtype} of shape {rgb.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")


EDGE_LETTERS: tuple[dict[str, str], ...] = (
    {"left": "A", "right": "P", "top": "S", "bottom": "I"},
    {"left": "R", "right": "L", "top": "S", "bottom": "I"},
    {"left": "R", "right": "L", "top": "A", "bottom": "P"},
)
"""What lies at each edge of a picture, by the axis that the slice is taken along."""


def to_canonical(array: Volume, affine: NDArray[Any]) -> tuple[Volume, Spacing]:
    """Turn a volume ``(X, Y, Z)`` to the closest RAS axes, so that pictures do not depend on how a file stores it.

    Axes are permuted and flipped, never resampled: an oblique volume keeps its voxels. The affine, ``(4, 4)``, leads
    from voxel indices to RAS mm.

    Returns:
        The volume, its axes towards the patient's right, front and head, and the voxels' size along them, mm.

    Raises:
        ValueError: when ``array`` is not 3-D, or ``affine`` is not 4x4, not finite, or singular.
    """
    matrix = check_affine(affine)
    if array.ndim != 3:
        raise ValueError(f"array must be 3-D, got shape {array.shape}")
    orientation = nib.io_orientation(matrix)
    x, y, z = voxel_sizes(matrix)[np.argsort(orientation[:, 0])]
    return nib.apply_orientation(array, orientation), (float(x), float(y), float(z))


def display_slice(volume: Volume, axis: int, index: int) -> NDArray[Any]:
    """Slice ``index`` along ``axis`` of a volume ``(X, Y, Z)`` in RAS order, as a picture ``(rows, columns)``.

    Axial (axis 2) as radiologists look at it: the patient's right on the picture's left, front up. Coronal (axis 1):
    head up, the patient's right on the left. Sagittal (axis 0): head up, front on the left.
    """
    # A view: np.take would copy a volume that is not contiguous.
    return upright(np.moveaxis(volume, axis, 0)[index])


def upright(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane of a canonical volume, its axes in the volume's order, as ``display_slice`` shows it."""
    return plane[::-1, ::-1].T


def foreground_box(mask: NDArray[Any]) -> tuple[tuple[int, int], ...] | None:
    """First voxel and the one after the last, along each axis, of what is above 0 in a mask or class indices
    ``(X, Y, Z)``; None where nothing is."""
    seen = mask.max(axis=2)
    along = (seen.max(axis=1), seen.max(axis=0), mask.max(axis=0).max(axis=0))
    inside = [np.flatnonzero(highest > 0) for highest in along]
    return tuple((int(at[0]), int(at[-1]) + 1) for at in inside) if inside[0].size else None


def pixel_mm(spacing_mm: Sequence[float] | NDArray[Any], axis: int) -> tuple[float, float]:
    """Height and width, mm, of a pixel of ``display_slice``."""
    width, height = (float(size) for index, size in enumerate(spacing_mm) if index != axis)
    return height, width


SAMPLE_SIZE = 2**20
"""About how many voxels, evenly spread, of a larger image its percentiles are found in."""


def find_window(image: Volume, window: Window | None = None) -> Window:
    """The intensities that turn black and white: those asked for (see `check_window`), or those that suit an image.

    These are its 1st and 99th percentile. Where more than half of the image holds its lowest value, as an angiogram
    without its soft tissue or a brain without its skull, that value turns black and the 99th percentile of all others
    white. The image may have any shape; of a large one every n-th voxel along each axis is looked at.
    """
    if window is not None:
        return check_window(window)
    step = math.ceil((image.size / SAMPLE_SIZE) ** (1 / image.ndim))
    sample = image[(slice(None, None, step),) * image.ndim]
    low, high = (float(level) for level in np.percentile(sample, (1, 99)))
    others = sample[sample > sample.min()]
    if others.size < sample.size / 2:
        low = float(sample.min())
        # What is bright may lie between the voxels looked at.
        high = float(np.percentile(others, 99) if others.size else image.max())
    return low, high if high > low else low + 1


def check_window(window: Window, name: str = "window") -> Window:
    """Two finite numbers in rising order as floats, else ValueError."""
    if len(window) != 2 or not np.isfinite(window).all() or window[0] >= window[1]:
        raise ValueError(f"{name} must be (low, high), finite, with low below high, got {tuple(window)}")
    return float(window[0]), float(window[1])


def grey_levels(image: Volume, window: Window | None = None) -> NDArray[np.float64]:
    """Intensities of any shape as grey, 0 (black) to 1 (white); ``window`` as in ``find_window``."""
    low, high = find_window(image, window)
    return ((np.asarray(image, dtype=np.float64) - low) / (high - low)).clip(0, 1)


STYLES = ("colour", "red")
COLOUR_MAP = "inferno"
"""Perceptually uniform: equal steps of importance look equally large."""
OPACITY = 0.75
"""Of the colour where importance is 1."""


def blend(
    grey: NDArray[Any], importance: Volume | None, threshold: float = 0.1, style: str = "colour"
) -> NDArray[np.float64]:
    """Lay importance over grey.

    - ``colour``: a perceptually uniform colour map, the more opaque the higher importance is, and absent up to the
      threshold.
    - ``red``: from the untouched grey at 0 to pure red at 1, with no threshold. Chatterjee et al., "Interpretability
      techniques for deep learning based segmentation models", ISMRM 2021, Fig. 2 to 4: the map drawn from black to
      white, "white pixels were converted to red for overlaying".

    Args:
        grey: ``(rows, columns)``, 0 to 1.
        importance: ``(rows, columns)``, 0 to 1; None leaves the grey alone.
        threshold, style: see `check_style`.

    Returns:
        RGB, ``(rows, columns, 3)``, 0 to 1.
    """
    check_style(style, threshold)
    ground = np.repeat(np.asarray(grey, dtype=np.float64)[..., None], 3, axis=2)
    if importance is None:
        return ground
    values = np.asarray(importance, dtype=np.float64).clip(0, 1)
    if style == "red":
        alpha, colour = values[..., None], np.array([1.0, 0.0, 0.0])
    else:
        alpha = OPACITY * ((values - threshold) / (1 - threshold)).clip(0, 1)[..., None]
        colour = mpl.colormaps[COLOUR_MAP](values)[..., :3]
    blended: NDArray[np.float64] = (1 - alpha) * ground + alpha * colour
    return blended


def bar_colours(threshold: float = 0.1, style: str = "colour") -> Colormap:
    """The colours, for importance from 0 to 1, that ``blend`` gives where the scan is mid-grey."""
    return ListedColormap(blend(np.full((1, 256), 0.5), np.linspace(0, 1, 256)[None], threshold, style)[0])


DISPLAY_PERCENTILE = 99.9
"""Percentile of a method's map that pictures show as 1."""


def scale_map(values: NDArray[Any], limits: Window | None = None) -> NDArray[np.float32]:
    """Scale an attribution or an activation, of any shape, to 0 to 1, as an overlay needs it.

    ``limits`` are the values that turn 0 and 1, what lies beyond is clipped; by default the map's lowest and highest.

    Raises:
        ValueError: when a value is NaN or infinite, ``limits`` is not two finite numbers in rising order, or all
            values are the same and there are no ``limits``.
    """
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("map must hold finite values only, got NaN or infinity")
    if limits is not None:
        lowest, highest = check_window(limits, "limits")
    if lowest == highest:
        raise ValueError(f"map must hold more than one value to be scaled without limits, got {lowest} everywhere")
    return np.asarray((values - lowest) / (highest - lowest), dtype=np.float32).clip(0, 1)


def display_scale(values: NDArray[Any], percentile: float = DISPLAY_PERCENTILE) -> NDArray[np.float32]:
    """Scale a method's map to 0 to 1 for display: 0 where it is 0 or below, 1 from a high percentile on.

    A percentile, since single voxels of some methods tower above all others. A map that is negative everywhere, such
    as ranks by distance, starts at its lowest value. Where the percentile of ``values`` (of any shape) is not above
    the start, their highest value is 1.
    """
    low = 0.0 if values.max() > 0 else float(values.min())
    high = float(np.percentile(values, percentile))
    high = high if high > low else float(values.max())
    return scale_map(values, (low, high)) if high > low else np.zeros(values.shape, dtype=np.float32)


def check_style(style: str, threshold: float = 0.0) -> None:
    """Refuse, by ValueError, an unknown style and a threshold outside [0, 1)."""
    check_choice("style", style, STYLES)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}")


RANGE_SLACK = 1e-3
"""How far resampling may have carried importance out of [0, 1]; it is clipped there."""


def check_picture(
    spacing_mm: Spacing,
    axis: int,
    image: Volume,
    importance: Volume | None = None,
    segmentation: Volume | None = None,
    window: Window | None = None,
    style: str = "colour",
    threshold: float = 0.0,
) -> None:
    """Refuse what cannot be drawn; arguments and errors are those of ``mips``."""
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


def check_view(spacing_mm: Spacing, axis: int, window: Window | None = None) -> None:
    """Refuse, by ValueError, an axis that is not 0, 1 or 2, a spacing that is not three finite numbers above 0, and a
    window that is not two finite numbers in rising order."""
    check_choice("axis", axis, (0, 1, 2))
    if len(spacing_mm) != 3 or not all(np.isfinite(size) and size > 0 for size in spacing_mm):
        raise ValueError(f"spacing_mm must be three finite numbers above 0, got {spacing_mm}")
    if window is not None:
        check_window(window)


def check_volume(name: str, volume: Volume) -> tuple[Any, Any]:
    """The lowest and the highest value of a volume that can be drawn: not empty, 3-D and finite, else ValueError."""
    if volume.ndim != 3 or volume.size == 0:
        raise ValueError(f"{name} must be 3-D and not empty, got shape {volume.shape}")
    # The extremes tell, without a copy of the volume: NaN is both, infinity one of them.
    low, high = volume.min(), volume.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} must hold finite values only, got NaN or infinity")
    return low, high


def check_importance(importance: NDArray[Any]) -> NDArray[np.float64]:
    """Importance as float64, clipped where resampling carried it out of [0, 1] by 1e-3 at most, else ValueError."""
    _check_unit_range(importance.min(), importance.max())
    return np.asarray(importance, dtype=np.float64).clip(0, 1)


def _check_unit_range(lowest: float, highest: float) -> None:
    if not (lowest >= -RANGE_SLACK and highest <= 1 + RANGE_SLACK):
        raise ValueError(f"importance must lie in [0, 1], got values from {lowest} to {highest}")
