"""What each layer of a network responds to, side by side, from the first to the last."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.render.canonical import EDGE_LETTERS, pixel_mm
from unoise_monai.render.checks import check_picture, check_view, check_volume
from unoise_monai.render.grey import grey_levels
from unoise_monai.render.layout import title_width
from unoise_monai.render.overlay import blend, scale_map
from unoise_monai.render.panels import Panel, draw_panels
from unoise_monai.render.projection import project

PANEL_WIDTH = 280
"""Pixels, enough for a layer's name and range."""


def layer_grid(
    maps: Mapping[str, NDArray[Any]],
    spacing_mm: tuple[float, float, float],
    axis: int = 2,
    image: NDArray[Any] | None = None,
    window: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Draw the maximum intensity projection of one map a layer, from left to right and from top to bottom.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021, Fig. 5:
    from the first layer to the last, and then the network's output. Each panel is scaled to its own range, which its
    title says (the lowest and the highest value of the projection), so that layers of very different scale are all
    seen; one value everywhere is black. Deep layers of fewer voxels are drawn over the same part of the patient.

    Args:
        maps: layer's name to its map, ``(X', Y', Z')`` in RAS order, the first layer first and the output last; they
            may differ in shape, and all cover the extent of the image. The projection of a signed map shows its
            highest values: give its magnitude to see both signs.
        spacing_mm: size along X, Y and Z, mm, of the image's voxels, or, without one, of the map's with the most.
        axis: the axis that is projected along: 0 sagittal, 1 coronal, 2 axial.
        image: intensities, ``(X, Y, Z)`` in RAS order, drawn before the layers.
        window: the image's intensities that turn black and white; found in its projection where it is None.

    Returns:
        RGB, ``(H, W, 3)``.

    Raises:
        ValueError: when there is no map, or one is not 3-D, is empty, or holds NaN or infinity.
        ValueError: when ``image`` is not 3-D, is empty, holds NaN or infinity, or the same value in all voxels.
        ValueError: when ``axis``, ``spacing_mm`` or ``window`` is out of range.
    """
    if not maps:
        raise ValueError("maps must hold at least one layer, got none")
    check_view(spacing_mm, axis, window)
    for name, values in maps.items():
        check_volume(f"map of {name!r}", values)
    if image is not None:
        check_picture(spacing_mm, axis, image)

    finest = max(maps.values(), key=lambda values: values.size) if image is None else image
    extent_mm = [count * size for count, size in zip(finest.shape, spacing_mm, strict=True)]
    pictures: list[tuple[str, NDArray[Any], tuple[int, ...]]]
    pictures = [] if image is None else [("image", grey_levels(project(image, axis), window), image.shape)]
    for name, values in maps.items():
        picture = project(values, axis)
        low, high = float(picture.min()), float(picture.max())
        if low == high:
            pictures.append((_title(name, f"all {low:.3g}"), np.zeros(picture.shape), values.shape))
        else:
            pictures.append((_title(name, f"{low:.3g} to {high:.3g}"), scale_map(picture), values.shape))
    panels = []
    for title, grey, shape in pictures:
        x, y, z = (size / count for size, count in zip(extent_mm, shape, strict=True))
        panels.append(Panel(blend(grey, None), title, pixel_mm=pixel_mm((x, y, z), axis)))
    height_mm, width_mm = pixel_mm((extent_mm[0], extent_mm[1], extent_mm[2]), axis)
    longest = round(PANEL_WIDTH * max(1, height_mm / width_mm))
    return draw_panels(panels, letters=EDGE_LETTERS[axis], longest=longest)


def _title(name: str, values: str) -> str:
    """A layer's name and what its values are, with as much of the middle of the name left out as makes it fit."""

    def shortened(kept: int) -> str:
        return f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}: {values}"

    if title_width(f"{name}: {values}") <= PANEL_WIDTH:
        return f"{name}: {values}"
    return shortened(bisect(range(1, len(name)), PANEL_WIDTH, key=lambda kept: title_width(shortened(kept))))
