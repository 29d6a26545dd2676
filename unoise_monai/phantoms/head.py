"""A simplified head, and how a time-of-flight angiogram comes to look as it does."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.phantoms.shapes import Array, Ellipsoid, soften


class Tissue(IntEnum):
    """What a point of the head is made of, vessels aside, and the range of its brightness in units of the brain's."""

    brightness: tuple[float, float]

    def __new__(cls, value: int, low: float, high: float) -> "Tissue":
        tissue = int.__new__(cls, value)
        tissue._value_, tissue.brightness = value, (low, high)
        return tissue

    AIR = 0, 0.0, 0.02
    SKIN = 1, 0.8, 1.6
    FAT = 2, 1.1, 2.6
    MUSCLE = 3, 0.5, 0.9
    BONE = 4, 0.05, 0.3
    MARROW = 5, 0.7, 2.4
    FLUID = 6, 0.25, 0.7
    BRAIN = 7, 1.0, 1.0
    DEEP_BRAIN = 8, 0.85, 1.15
    EYE = 9, 0.3, 0.8
    CHOROID = 10, 1.3, 2.4


BRIGHT = (Tissue.SKIN, Tissue.FAT, Tissue.MARROW, Tissue.CHOROID)
"""What may be as bright as a vessel and is none."""


def random_brightness(rng: np.random.Generator) -> Array:
    """One scan's brightness of each tissue, in units of the brain's."""
    return rng.uniform(*np.array([kind.brightness for kind in Tissue]).T)


def waves(
    rng: np.random.Generator, size: Sequence[int], affine: Array, wavelength_mm: tuple[float, float], count: int = 8
) -> NDArray[np.float32]:
    """A random smooth field ``(X, Y, Z)`` of mean 0 and variance 1: plane waves, the same in the world on any grid.

    ``affine`` ``(4, 4)`` takes voxel indices to mm; ``wavelength_mm`` are the shortest and the longest of the ``count``
    waves.
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
        place, half = scale * (np.array([x, y, z]) + rng.normal(0, 2, 3)), scale * np.array(shape)
        return [Ellipsoid(place * [side, 1, 1], half * rng.uniform(0.85, 1.15)) for side in (1, -1)]

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


Volume = NDArray[np.float32]
SATURATED = 0.35
"""Brightness of blood that has stayed in the slab for long, relative to that of blood which enters it."""


def drawn(low: float, high: float) -> Any:
    """A field of `Look` that is drawn uniformly from a range."""
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Look:
    """What differs between scanners, sequences and post-processing."""

    blood: float = drawn(350, 950)
    """Brightness of entering blood, in the image's unit."""
    contrast: float = drawn(2.5, 6.5)
    """The same in units of the brain's brightness."""
    decay: float = drawn(100, 300)
    """Transit (path length over radius) after which the inflow effect has fallen to 1/e."""
    turbulence: float = drawn(0.0, 0.15)
    """Standard deviation of the blood's brightness about what inflow makes it, relative."""
    texture: float = drawn(0.02, 0.12)
    """Standard deviation of the tissue's own variation, relative."""
    bias: float = drawn(0.03, 0.2)
    """Standard deviation of the logarithm of the coil's sensitivity."""
    blur: float = drawn(0.0, 0.9)
    """Share of the image that its average over neighbours replaces."""
    noise: float = drawn(0.04, 0.16)
    """Standard deviation of the noise in each channel, relative to the brain's brightness."""
    grain: float = drawn(0.0, 1.0)
    """Share of the noise that is correlated between neighbours, as interpolation leaves it."""
    threshold: float = drawn(0.5, 1.3)
    """What stripping sets to 0: all below this, in units of the brain's brightness."""
    subtracted: float = drawn(0.0, 1.0)
    """Share of the threshold that stripping also takes off what remains."""
    ceiling: float = drawn(0.6, 1.3)
    """Brightness that stripping cuts off what is above, in units of the entering blood's."""
    margin: float = drawn(-1.0, 2.5)
    """By how many voxels stripping grows the vessels before it removes what lies beyond; below 0 nothing."""
    remains: float = drawn(0.001, 0.06)
    """Share of the volume in which stripping leaves the soft tissue, above 0."""


RANGES: dict[str, tuple[float, float]] = {each.name: each.metadata["range"] for each in fields(Look)}


def random_look(rng: np.random.Generator) -> Look:
    """Draw one scan's look from :data:`RANGES`."""
    return Look(**{name: float(rng.uniform(*span)) for name, span in RANGES.items()})


def inflow(transit: Array, decay: float) -> Array:
    """Brightness of blood: 1 where it enters, then ``s + (1 - s) exp(-transit / decay)`` with s = ``SATURATED``.

    By Murray's law blood moves at a speed proportional to the radius: path length over radius, summed along the tree,
    measures the time that it took, so that small and far vessels are dim.
    """
    return SATURATED + (1 - SATURATED) * np.exp(-transit / decay)


def rician(image: Volume, sigma: float, grain: float, rng: np.random.Generator) -> Volume:
    """The magnitude of ``image`` with Gaussian noise of standard deviation ``sigma`` in both its channels.

    ``grain`` is the share of the noise's variance that is correlated between neighbours.
    """
    if sigma == 0:
        return image
    channels = []
    for _ in range(2):
        white, correlated = rng.standard_normal((2, *image.shape), dtype=np.float32)
        # soften() scales the deviation of white noise by sqrt(6) / 4 along each axis.
        correlated = np.float32((4 / np.sqrt(6)) ** 3 * np.sqrt(grain)) * soften(correlated)
        channels.append(np.float32(sigma) * (np.float32(np.sqrt(1 - grain)) * white + correlated))
    return np.hypot(image + channels[0], channels[1])


def strip(image: Volume, share: Volume, patches: Volume, look: Look) -> Volume:
    """Remove the soft tissue as a scanner or a person does: by a threshold, and by what lies far from vessels.

    Args:
        image: ``(X, Y, Z)``.
        share: of each voxel that lies in a vessel.
        patches: a field of mean 0 and variance 1; where it is highest the tissue stays.
        look: how thoroughly it is done.
    """
    # Without a margin the threshold alone has to separate vessels and tissue.
    relative = look.threshold if look.margin >= 0 else look.threshold + 0.8
    cut = np.float32(relative * look.blood / look.contrast)
    kept = image > cut
    if look.margin >= 0:
        near = share > 0
        for _ in range(round(look.margin)):
            # One voxel more on all sides but at the corners, where a single neighbour adds 1/64.
            near = soften(near.astype(np.float32)) > 1 / 64
        kept &= near | (patches > NormalDist().inv_cdf(1 - look.remains))
    image = np.minimum(image, np.float32(look.ceiling * look.blood))
    return np.where(kept, image - np.float32(look.subtracted) * cut, np.float32(0))
