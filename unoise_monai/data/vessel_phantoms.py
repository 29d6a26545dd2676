"""Synthetic time-of-flight angiograms of the head, with exact vessel labels and much that varies between scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unoise_monai.data.head import BRIGHT, Tissue, random_brightness, random_head, waves
from unoise_monai.data.phantoms import Phantom, Truth, check_options
from unoise_monai.data.shapes import Array, grid_affine, paint, paint_cones, random_rotation, soften
from unoise_monai.data.tof import Volume, inflow, random_look, rician, strip
from unoise_monai.data.vessel_tree import Segment, random_vessels

SUBVOXELS = 3
"""Sub-voxels along each axis, whose share inside vessels is the partial volume; odd, so that one is in the centre."""
SLAB = 32
"""How many planes of voxels are divided into sub-voxels at a time, which bounds the memory."""
STRIPPED_SHARE = 0.4
"""Share of the scans whose soft tissue is removed."""


def vessel_phantom(
    seed: int,
    size: Sequence[int] = (160, 192, 112),
    spacing_mm: Sequence[float] = (0.6, 0.6, 0.6),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise: float | None = None,
    stripped: bool | None = None,
) -> Phantom:
    """Draw one TOF-MRA; the same ``seed`` gives the same anatomy in millimetres on any grid.

    The grid is a slab around the circle of Willis. Heads are of 60 to 95 % of an adult's size, so that the default
    grid shows skull and scalp of most; it always crops the head above and below. Arteries of 0.3 to 3 mm radius enter
    from below. The label is exact: 1 where the voxel's centre lies in a vessel. In the image a voxel mixes blood and
    tissue by their shares, so that a vessel thinner than a voxel is faint. How blood brightens says
    :func:`unoise_monai.data.tof.inflow`, what else varies between scans :class:`unoise_monai.data.tof.Look`.

    Args:
        seed: of anatomy, look and noise, at least 0.
        size: voxels along each axis, at least 16.
        spacing_mm: voxel sizes.
        oblique_degrees: turn of the grid about a fixed oblique axis.
        left_handed: flip the first voxel axis, so that the affine's determinant is negative.
        noise: standard deviation of the Rician noise in each channel, in the image's arbitrary unit, whose entering
            blood is 350 to 950; None draws it.
        stripped: whether the soft tissue is removed, as scanners and people do; None draws it for 40 % of the scans.

    Raises:
        ValueError: when ``seed`` is negative or no integer.
        ValueError: when ``size`` is not three integers of at least 16.
        ValueError: when ``spacing_mm`` is not three positive finite numbers.
        ValueError: when ``oblique_degrees`` is not finite, or ``noise`` not finite and at least 0.
    """
    check_options(seed, size, spacing_mm, oblique_degrees, noise)
    affine = grid_affine(size, spacing_mm, oblique_degrees, left_handed)
    # Streams of their own: the anatomy must not depend on options, nor on how many voxels the noise fills.
    anatomy_rng, look_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    place = np.diag([1.0, 1.0, 1.0, 1.0])
    place[:3, :3] = random_rotation(anatomy_rng, 10)
    place[:3, 3] = anatomy_rng.uniform(-6, 6, 3)
    to_head = np.linalg.inv(place) @ affine
    scale = anatomy_rng.uniform(0.6, 0.95)
    brain, solids = random_head(anatomy_rng, scale)
    segments = random_vessels(anatomy_rng, scale, brain)

    look = random_look(look_rng)
    # Drawn whether or not it is asked for, so that what follows stays the same.
    drawn_stripped = bool(look_rng.random() < STRIPPED_SHARE)
    tissue = np.full(tuple(size), Tissue.AIR, np.uint8)
    for kind, shape in solids:
        paint(tissue, shape, kind, to_head)
    label, share, blood = paint_blood(segments, look.decay, size, to_head)

    patches = waves(look_rng, size, to_head, (10, 50))
    relative = random_brightness(look_rng).astype(np.float32)[tissue]
    relative *= 1 + np.float32(look.texture) * waves(look_rng, size, to_head, (3, 30), 16)
    relative *= np.where(tissue == Tissue.MARROW, np.clip(0.6 + 0.6 * patches, 0.1, 1.5), np.float32(1))
    image = look.blood / look.contrast * soften(relative) * (1 - share)
    image += look.blood * blood * np.maximum(0, 1 + np.float32(look.turbulence) * patches)
    image = (1 - look.blur) * image + look.blur * soften(image)
    image *= np.exp(np.float32(look.bias) * waves(look_rng, size, to_head, (120, 400), 4))
    image = image.astype(np.float32)
    image = rician(image, look.noise * look.blood / look.contrast if noise is None else noise, look.grain, noise_rng)
    if drawn_stripped if stripped is None else stripped:
        image = strip(image, share, patches, look)

    meaning = [Truth.DISTRACTOR if kind in BRIGHT else Truth.IRRELEVANT for kind in Tissue]
    meaning[Tissue.AIR] = Truth.OUTSIDE
    truth = np.where(label == 1, np.uint8(Truth.TARGET), np.array(meaning, np.uint8)[tissue])
    return Phantom(np.clip(np.rint(image), 0, 4095).astype(np.int16), label, truth, affine)


def paint_blood(
    segments: list[Segment], decay: float, size: Sequence[int], affine: Array
) -> tuple[NDArray[np.uint8], Volume, Volume]:
    """Vessels on a voxel grid, each array ``(X, Y, Z)``.

    Args:
        segments: the vessels, in mm.
        decay: transit after which the inflow effect has fallen to 1/e.
        size: voxels along each axis.
        affine: ``(4, 4)``, voxel indices to mm.

    Returns:
        Whether the voxel's centre lies in a vessel (0 or 1), the share of the voxel that lies in vessels, and that
        share times the blood's brightness (1 where it enters), steps of 1/255.
    """
    vessels = (
        np.concatenate([both_ends(segment.points) for segment in segments]),
        np.concatenate([both_ends(segment.radii) for segment in segments]),
        np.concatenate([np.rint(255 * inflow(segment.transit[1:], decay)) for segment in segments]).astype(np.uint8),
    )
    label = np.zeros(tuple(size), np.uint8)
    share, blood = np.zeros((2, *size), np.float32)
    for first in range(0, size[0], SLAB):
        slab = slice(first, min(first + SLAB, size[0]))
        to_voxel = np.diag([*[1 / SUBVOXELS] * 3, 1.0])
        to_voxel[:3, 3] = (1 / SUBVOXELS - 1) / 2
        to_voxel[0, 3] += first
        fine = np.zeros(SUBVOXELS * np.array([slab.stop - first, *size[1:]]), np.uint8)
        paint_cones(fine, *vessels, affine @ to_voxel)
        offsets = np.ndindex(SUBVOXELS, SUBVOXELS, SUBVOXELS)
        for view in (fine[i::SUBVOXELS, j::SUBVOXELS, k::SUBVOXELS] for i, j, k in offsets):
            share[slab] += view > 0
            blood[slab] += view
        middle = SUBVOXELS // 2
        label[slab] = fine[middle::SUBVOXELS, middle::SUBVOXELS, middle::SUBVOXELS] > 0
    return label, share / SUBVOXELS**3, blood / (255 * SUBVOXELS**3)


def both_ends(values: Array) -> Array:
    """Of each piece between successive points the value at its start and at its end: (N, ...) to (N - 1, 2, ...)."""
    return np.stack([values[:-1], values[1:]], axis=1)
