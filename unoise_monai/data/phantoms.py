"""Synthetic abdominal CT in which only the neighbourhood tells the target, with the map of what should matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unoise_monai.data.anatomy import Tissue, random_abdomen, random_hounsfield
from unoise_monai.data.shapes import grid_affine, paint, random_rotation, soften


class Truth(IntEnum):
    """What a voxel means for telling the target."""

    OUTSIDE = 0
    TARGET = 1
    LANDMARK = 2
    DISTRACTOR = 3
    IRRELEVANT = 4


MEANING = {
    Tissue.AIR: Truth.OUTSIDE,
    Tissue.TARGET: Truth.TARGET,
    Tissue.AORTA: Truth.LANDMARK,
    Tissue.SPLENIC_VEIN: Truth.LANDMARK,
    Tissue.BOWEL: Truth.DISTRACTOR,
}


class Phantom(NamedTuple):
    """One synthetic scan, every array ``(X, Y, Z)``."""

    image: NDArray[np.int16]
    """Intensity: HU in CT, arbitrary units in MR."""
    label: NDArray[np.uint8]
    """1 in the target, 0 elsewhere."""
    truth: NDArray[np.uint8]
    """Values of :class:`Truth`."""
    affine: NDArray[np.float64]
    """Voxel indices to RAS millimetres, (4, 4), as nibabel has it."""


def abdomen_phantom(
    seed: int,
    size: Sequence[int] = (96, 96, 96),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise: float = 12.0,
) -> Phantom:
    """Draw one abdomen; the same ``seed`` gives the same anatomy in millimetres on any grid.

    The target, a curved tube along the splenic vein and over the aorta, shares its mean intensity and its family of
    calibres and curves with 4 to 7 bowel loops elsewhere. The whole moves by up to 10 mm, turns and scales a little,
    so that no fixed place tells the target either. A grid smaller than the body crops it around the middle.

    Args:
        seed: of the anatomy and of the noise, at least 0.
        size: voxels along each axis, at least 16.
        spacing_mm: voxel sizes.
        oblique_degrees: turn of the grid about a fixed oblique axis.
        left_handed: flip the first voxel axis, so that the affine's determinant is negative.
        noise: standard deviation of the noise in HU, part white, part correlated between neighbours.

    Raises:
        ValueError: when ``seed`` is negative or no integer.
        ValueError: when ``size`` is not three integers of at least 16.
        ValueError: when ``spacing_mm`` is not three positive finite numbers.
        ValueError: when ``oblique_degrees`` is not finite, or ``noise`` not finite and at least 0.
    """
    check_options(seed, size, spacing_mm, oblique_degrees, noise)
    affine = grid_affine(size, spacing_mm, oblique_degrees, left_handed)
    # Two streams: the anatomy must not depend on how many voxels the noise fills.
    rng, noise_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    place = np.diag([1.0, 1.0, 1.0, 1.0])
    place[:3, :3] = rng.uniform(0.94, 1.06) * random_rotation(rng, 4)
    place[:3, 3] = rng.uniform(-10, 10, 3)
    tissue = np.full(tuple(size), Tissue.FAT, np.uint8)
    to_body = np.linalg.inv(place) @ affine
    for kind, shape in random_abdomen(rng):
        paint(tissue, shape, kind, to_body)

    hounsfield = soften(random_hounsfield(rng).astype(np.float32)[tissue])
    white, correlated = noise_rng.standard_normal((2, *size), dtype=np.float32)
    # soften() scales the deviation of white noise by sqrt(6) / 4 along each axis; 0.6 and 0.8 add up to one variance.
    hounsfield += np.float32(noise) * (0.6 * white + 0.8 * (4 / math.sqrt(6)) ** 3 * soften(correlated))
    image = np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16)
    truth = np.array([MEANING.get(kind, Truth.IRRELEVANT) for kind in Tissue], np.uint8)[tissue]
    return Phantom(image, (truth == Truth.TARGET).astype(np.uint8), truth, affine)


def check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_options(
    seed: int, size: Sequence[int], spacing_mm: Sequence[float], oblique_degrees: float, noise: float | None
) -> None:
    check_integer("seed", seed, 0)
    if np.shape(size) != (3,) or any(not isinstance(side, int | np.integer) or side < 16 for side in size):
        raise ValueError(f"size must be three integers of at least 16, got {size}")
    if np.shape(spacing_mm) != (3,) or any(not (math.isfinite(step) and step > 0) for step in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    if not math.isfinite(oblique_degrees):
        raise ValueError(f"oblique_degrees must be a finite number, got {oblique_degrees}")
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
