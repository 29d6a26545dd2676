"""How a time-of-flight angiogram comes to look as it does: inflow, coil, noise, and the removal of soft tissue.

Images are magnitudes in arbitrary units; lengths that noise and blur act over are voxels, as in a scanner.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unoise_monai.data.shapes import Array, soften

Volume = NDArray[np.float32]
SATURATED = 0.35
"""Brightness of blood that has stayed in the slab for long, relative to that of blood which enters it."""


class Look(NamedTuple):
    """What differs between scanners, sequences and post-processing."""

    blood: float
    """Brightness of entering blood, in the image's unit."""
    contrast: float
    """The same in units of the brain's brightness."""
    decay: float
    """Transit (path length over radius) after which the inflow effect has fallen to 1/e."""
    turbulence: float
    """Standard deviation of the blood's brightness about what inflow makes it, relative."""
    texture: float
    """Standard deviation of the tissue's own variation, relative."""
    bias: float
    """Standard deviation of the logarithm of the coil's sensitivity."""
    blur: float
    """Share of the image that its average over neighbours replaces."""
    noise: float
    """Standard deviation of the noise in each channel, relative to the brain's brightness."""
    grain: float
    """Share of the noise that is correlated between neighbours, as interpolation leaves it."""
    threshold: float
    """What stripping sets to 0: all below this, in units of the brain's brightness."""
    subtracted: float
    """Share of the threshold that stripping also takes off what remains."""
    ceiling: float
    """Brightness that stripping cuts off what is above, in units of the entering blood's."""
    margin: float
    """By how many voxels stripping grows the vessels before it removes what lies beyond; below 0 it removes nothing."""
    remains: float
    """Share of the volume in which stripping forgot the soft tissue, above 0."""


RANGES = {
    "blood": (350, 950),
    "contrast": (2.5, 6.5),
    "decay": (100, 300),
    "turbulence": (0.0, 0.15),
    "texture": (0.02, 0.12),
    "bias": (0.03, 0.2),
    "blur": (0.0, 0.9),
    "noise": (0.04, 0.16),
    "grain": (0.0, 1.0),
    "threshold": (0.5, 1.3),
    "subtracted": (0.0, 1.0),
    "ceiling": (0.6, 1.3),
    "margin": (-1.0, 2.5),
    "remains": (0.001, 0.06),
}
"""What each field of :class:`Look` is drawn from, uniformly."""


def random_look(rng: np.random.Generator) -> Look:
    """Draw one scan's look from :data:`RANGES`."""
    return Look(**{name: float(rng.uniform(*RANGES[name])) for name in Look._fields})


def inflow(transit: Array, decay: float) -> Array:
    """Brightness of blood: 1 where it enters, then ``s + (1 - s) exp(-transit / decay)`` with s = ``SATURATED``.

    By Murray's law blood moves at a speed proportional to the radius, so that path length over radius, summed along
    the tree, measures the time that it took: small and far vessels are dim.
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
        patches: a field of mean 0 and variance 1; where it is highest the tissue is forgotten and stays.
        look: how thoroughly it is done.
    """
    # Without a margin the threshold alone has to tell vessels from tissue.
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
