"""Maximum intensity projections of a volume from any side around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray

TURNS = {0: ("I", "P", "L"), 1: ("L", "S", "P"), 2: ("L", "P", "I")}
"""By the axis of rotation, the directions across the picture and away from the viewer at 0 degrees, and along the
axis. At 90 degrees the second one runs across."""
SIDES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
DIGITS = 6
"""That positions, in voxels, are rounded to, so that edges that coincide stay together."""


class Turn(NamedTuple):
    """Projections of one volume from several directions."""

    peaks: NDArray[np.float32]
    """Highest intensity along each ray, ``(N, rows, columns)``; NaN where the ray misses the volume."""
    shares: NDArray[np.float32] | None
    """Importance there, ``(N, rows, columns)``; 0 where the ray misses the volume."""
    pixel_mm: tuple[float, float]
    """Height and width of a pixel, mm."""


def turned_mips(
    image: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    degrees: Sequence[float],
    axis: int = 2,
    importance: NDArray[Any] | None = None,
    pixel_mm: float = 0,
) -> Turn:
    """Project a canonical volume along parallel rays from several directions around an axis through its centre.

    Voxels are boxes of one intensity, which a ray crosses or not: nothing is interpolated, so that no vessel is dimmer
    from one side than from another, and at multiples of 90 degrees the pictures are the plain projections. Of voxels
    equally bright along a ray, the most important one counts.

    Args:
        image: intensities, ``(X, Y, Z)`` in RAS order.
        spacing_mm: the voxels' size along X, Y and Z, mm.
        degrees: where to look from, as ``rotating_mip`` turns.
        axis: the axis of rotation.
        importance: ``(X, Y, Z)``.
        pixel_mm: where this is the size of several voxels, pixels are close to it, and each shows the brightest voxel
            of a beam of its width.
    """
    first_mm, second_mm, along_mm = (spacing_mm[SIDES[code]] for code in TURNS[axis])
    columns, rows = (image.shape[SIDES[code]] for code in TURNS[axis][:2])
    finest = min(first_mm, second_mm)
    wide, tall = max(1, round(pixel_mm / finest)), max(1, round(pixel_mm / along_mm))
    # Sizes of a voxel across the rays, in voxels of the finer size: the pixels' size where it is not several of them.
    first, second = first_mm / finest, second_mm / finest
    count = math.ceil(round(math.hypot(columns * first, rows * second) / wide, DIGITS))
    count += (count - round(columns * first / wide)) % 2  # so that rays go through the voxels' centres at 0 degrees
    rays = wide * _centres(count)
    values = _stacks(image, axis, tall, -np.inf)
    weights = None if importance is None else _stacks(importance, axis, tall, 0)
    peaks = np.full((len(degrees), count, values.shape[2]), np.nan, dtype=np.float32)
    shares = None if weights is None else np.zeros_like(peaks)
    for number, angle in enumerate(degrees):
        cosine, sine = _direction(angle)
        places = np.add.outer(cosine * first * _centres(columns), sine * second * _centres(rows)).ravel().round(DIGITS)
        order = np.argsort(places, kind="stable")
        # Half of the shadow of a voxel's box, and of the beam, which is a ray where a pixel is one voxel wide.
        reach = (abs(cosine) * first + abs(sine) * second + wide - 1) / 2
        ends = np.stack([rays - reach, rays + reach]).round(DIGITS)
        starts, stops = np.searchsorted(places[order], ends, side="right")
        for pixel, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            if start == stop:
                continue
            crossed = order[start:stop]
            ray = values[crossed].reshape(-1, values.shape[2])
            peaks[number, pixel] = ray.max(axis=0)
            if weights is not None and shares is not None:
                brightest = ray == peaks[number, pixel]
                shares[number, pixel] = np.where(brightest, weights[crossed].reshape(ray.shape), 0).max(axis=0)
    if axis != 0:  # the axis of rotation is upright
        peaks, shares = peaks.swapaxes(1, 2), None if shares is None else shares.swapaxes(1, 2)
        return Turn(peaks, shares, (tall * along_mm, wide * finest))
    return Turn(peaks, shares, (wide * finest, tall * along_mm))


def view_letters(angle: float, axis: int = 2) -> tuple[str, dict[str, str]]:
    """The side that ``rotating_mip`` looks from at an angle, and what lies at each edge of the picture."""
    first, second, along = TURNS[axis]
    cosine, sine = _direction(angle)
    end, start = _letters({first: cosine, second: sine}), _letters({first: -cosine, second: -sine})
    viewer = _letters({first: sine, second: -cosine})
    if axis == 0:
        return viewer, {"left": OPPOSITE[along], "right": along, "top": start, "bottom": end}
    return viewer, {"left": start, "right": end, "top": OPPOSITE[along], "bottom": along}


def _letters(parts: dict[str, float]) -> str:
    """Letters of a direction, the main one first, as DICOM's Patient Orientation (0020,0020) writes them."""
    towards = [(abs(part), code if part > 0 else OPPOSITE[code]) for code, part in parts.items() if part]
    return "".join(code for _, code in sorted(towards, key=lambda item: -item[0]))


def _direction(angle: float) -> tuple[float, float]:
    """Cosine and sine, exactly 0 and 1 where they should be."""
    return round(math.cos(math.radians(angle)), 12), round(math.sin(math.radians(angle)), 12)


def _centres(count: int) -> NDArray[np.float64]:
    """Of ``count`` cells of size 1 around 0."""
    return np.arange(count, dtype=np.float64) - (count - 1) / 2


def _stacks(volume: NDArray[Any], axis: int, tall: int, fill: float) -> NDArray[np.float32]:
    """Columns of voxels along an axis, cut into stacks of one pixel: ``(columns, tall, pixels)``."""
    to_view = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(TURNS[axis]))
    columns = apply_orientation(volume, to_view).astype(np.float32)
    columns = columns.reshape(-1, columns.shape[2])
    padded = np.pad(columns, ((0, 0), (0, -columns.shape[1] % tall)), constant_values=fill)
    return np.ascontiguousarray(padded.reshape(len(columns), -1, tall).swapaxes(1, 2))
