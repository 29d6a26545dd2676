"""A simplified head, drawn at random: its tissues in millimetres and how bright a TOF-MRA shows each.

Coordinates are RAS millimetres around the circle of Willis. No voxel grid enters but in :func:`waves`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from unoise_monai.data.shapes import Array, Ellipsoid


class Tissue(IntEnum):
    """What a point of the head is made of, vessels aside."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    MARROW = 5
    FLUID = 6
    BRAIN = 7
    DEEP_BRAIN = 8
    EYE = 9
    CHOROID = 10


BRIGHTNESS = {
    Tissue.AIR: (0.0, 0.02),
    Tissue.SKIN: (0.8, 1.6),
    Tissue.FAT: (1.1, 2.6),
    Tissue.MUSCLE: (0.5, 0.9),
    Tissue.BONE: (0.05, 0.3),
    Tissue.MARROW: (0.7, 2.4),
    Tissue.FLUID: (0.25, 0.7),
    Tissue.BRAIN: (1.0, 1.0),
    Tissue.DEEP_BRAIN: (0.85, 1.15),
    Tissue.EYE: (0.3, 0.8),
    Tissue.CHOROID: (1.3, 2.4),
}
"""Range of each tissue's brightness in units of the brain's."""

BRIGHT = (Tissue.SKIN, Tissue.FAT, Tissue.MARROW, Tissue.CHOROID)
"""What may be as bright as a vessel and is none."""


def random_brightness(rng: np.random.Generator) -> Array:
    """One scan's brightness of each tissue, in units of the brain's."""
    return rng.uniform(*np.array([BRIGHTNESS[kind] for kind in Tissue]).T)


def waves(
    rng: np.random.Generator, size: Sequence[int], affine: Array, wavelength_mm: tuple[float, float], count: int = 8
) -> NDArray[np.float32]:
    """A random smooth field of mean 0 and variance 1: plane waves, the same in the world on any grid.

    Args:
        rng: source of directions, wavelengths and phases.
        size: voxels along each axis.
        affine: ``(4, 4)``, voxel indices to mm.
        wavelength_mm: shortest and longest.
        count: of waves.

    Returns:
        ``(X, Y, Z)``.
    """
    directions = rng.standard_normal((count, 3))
    lengths = rng.uniform(*wavelength_mm, count) * np.linalg.norm(directions, axis=1)
    vectors = 2 * np.pi * directions / lengths[:, None]
    x, y, z = (
        np.exp(1j * np.outer(np.arange(n), step)) for n, step in zip(size, (vectors @ affine[:3, :3]).T, strict=True)
    )
    shift = np.exp(1j * (rng.uniform(0, 2 * np.pi, count) + vectors @ affine[:3, 3]))
    planes = (x[:, None] * y * shift).reshape(-1, count)
    # cos(a + b) = cos a cos b - sin a sin b: one matrix product instead of a cosine of each voxel.
    left = np.concatenate([planes.real, -planes.imag], axis=1).astype(np.float32)
    right = np.concatenate([z.real, z.imag], axis=1).astype(np.float32)
    return np.float32(np.sqrt(2 / count)) * (left @ right.T).reshape(tuple(size))


def random_head(rng: np.random.Generator, scale: float) -> tuple[Ellipsoid, list[tuple[Tissue, Ellipsoid]]]:
    """Draw one head around the circle of Willis, ``scale`` times an adult's.

    Returns:
        The brain, and tissues with their shapes in the order of painting, on a ground of :attr:`Tissue.AIR`.
    """
    centre = scale * np.array([0.0, -12.0, 27.0])
    radii = scale * np.array([66.0, 80.0, 62.0]) * rng.uniform(0.95, 1.05, 3)

    def shell(grow_mm: float, stretch: float = 1.0) -> Ellipsoid:
        return Ellipsoid(centre, (radii + grow_mm) * [1, 1, stretch], power=2.2)

    def pair(x: float, y: float, z: float, shape: tuple[float, float, float]) -> list[Ellipsoid]:
        place = np.array([x, y, z]) + rng.normal(0, 2, 3)
        return [
            Ellipsoid(scale * place * [side, 1, 1], scale * np.array(shape) * rng.uniform(0.85, 1.15))
            for side in (1, -1)
        ]

    # From the brain outwards, thickness in mm; the ranges keep every layer in sight at 0.6 mm.
    fluid, inner, marrow, outer, muscle, fat, skin = rng.uniform(
        [1.0, 1.2, 1.0, 1.2, 0.5, 1.5, 1.0], [3.5, 2.0, 4.0, 2.2, 3.0, 5.5, 2.0]
    ).cumsum()
    solids = [(Tissue.SKIN, shell(skin, 1.7)), (Tissue.FAT, shell(fat, 1.7)), (Tissue.MUSCLE, shell(muscle, 1.7))]
    solids += [(Tissue.FAT, part) for part in pair(31, 66, -20, (20, 24, 18))]
    solids += [(Tissue.EYE, part) for part in pair(31, 72, -20, (12, 12, 12))]
    solids += [(Tissue.BONE, shell(outer)), (Tissue.MARROW, shell(marrow)), (Tissue.BONE, shell(inner))]
    solids += [(Tissue.FLUID, shell(fluid)), (Tissue.BRAIN, shell(0.0))]
    solids += [(Tissue.DEEP_BRAIN, Ellipsoid(centre, radii * 0.72))]
    solids += [(Tissue.FLUID, part) for part in pair(12, -14, 26, (7, 26, 9))]
    # The cistern in which the circle of Willis lies.
    solids += [(Tissue.FLUID, Ellipsoid(scale * np.array([0.0, 10.0, 0.0]), scale * np.array([17.0, 17.0, 9.0])))]
    solids += [(Tissue.CHOROID, part) for part in pair(15, -34, 24, (3, 8, 4))]
    # Marrow of the skull's base, and what else is bright near the carotids.
    solids += [(Tissue.BONE, part) for part in pair(24, 0, -40, (20, 24, 14))]
    solids += [(Tissue.MARROW, part) for part in pair(22, 2, -40, (11, 12, 6))]
    return Ellipsoid(centre, radii), solids
