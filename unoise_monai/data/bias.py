"""Removes the slow change of brightness that receive coils leave in MR volumes, by SimpleITK's N4."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import SimpleITK
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

TISSUE_SHARE = 0.05
"""The least share of voxels above 0 in which N4 can tell a bias field from vessels."""


def n4_bias_correction(
    image: NDArray[Any], shrink: int = 4, iterations: int = 50, levels: int = 4
) -> NDArray[np.float32]:
    """Divide an MR volume by its bias field (N4: Tustison et al. 2010, IEEE TMI 29).

    The field is estimated on every ``shrink``-th voxel of the head, and evaluated at full resolution. Otsu's method
    parts the head from air by the logarithm of the intensities: without it, the fat of an angiogram would be parted
    from the brain.

    Args:
        image: magnitudes ``(X, Y, Z)``; voxels of 0 and below are no tissue.
        shrink: in voxels; 1 uses them all and takes ``shrink ** 3`` times as long.
        iterations: at most, at each level.
        levels: of the field, each with twice the control points of the one before.

    Returns:
        ``(X, Y, Z)``, the intensities divided by the field.

    Raises:
        ValueError: when ``image`` is not 3-D, holds NaN or infinite values, one value only, or none above 0.
        ValueError: when ``shrink``, ``iterations`` or ``levels`` is below 1.
    """
    _check(shrink, iterations, levels)
    if image.ndim != 3:
        raise ValueError(f"image must be 3-D, got shape {image.shape}")
    if not np.isfinite(image).all():
        raise ValueError(f"image must hold finite voxels only, got {int((~np.isfinite(image)).sum())} NaN or infinite")
    if image.min() == image.max() or image.max() <= 0:
        raise ValueError(f"image must hold different magnitudes, got {image.min()} to {image.max()}")
    volume = SimpleITK.GetImageFromArray(image.astype(np.float32))
    # What is empty, or next to it, has one logarithm, so that it makes one class.
    air = 0.01 * float(np.median(image[image > 0]))
    head = SimpleITK.OtsuThreshold(SimpleITK.Log(SimpleITK.Maximum(volume, air)), 0, 1)
    # A spline of the third order needs four samples an axis.
    steps = [min(shrink, max(1, side // 4)) for side in volume.GetSize()]
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([iterations] * levels)
    n4.Execute(SimpleITK.Shrink(volume, steps), SimpleITK.Shrink(head, steps))
    log_field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(volume))
    return image.astype(np.float32) / np.exp(log_field, dtype=np.float32)


class N4BiasCorrectiond(MapTransform):
    """`n4_bias_correction` of a case's volumes; deterministic, so data sets cache it.

    A volume whose soft tissue has been removed (fewer than 5 % of its voxels above 0) stays as it is, and the log says
    so: what is left are vessels, whose brightness follows their flow rather than the coil.

    Args:
        keys: the volumes.
        shrink, iterations, levels: of `n4_bias_correction`.
        allow_missing_keys: skip a key that a case lacks.

    Shape:
        each key ``(C, X, Y, Z)`` to the same; a `MetaTensor` keeps its geometry, and its intensities' type is float32.

    Raises:
        ValueError: when ``shrink``, ``iterations`` or ``levels`` is below 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        shrink: int = 4,
        iterations: int = 50,
        levels: int = 4,
        allow_missing_keys: bool = False,
    ) -> None:
        _check(shrink, iterations, levels)
        super().__init__(keys, allow_missing_keys)
        self.shrink, self.iterations, self.levels = shrink, iterations, levels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            channels = np.asarray(d[key])
            tissue = float((channels > 0).mean())
            if tissue < TISSUE_SHARE:
                logger.warning("%s: bias not corrected, %.1f %% of its voxels show tissue", d.get("case"), 100 * tissue)
                continue
            corrected = np.stack(
                [n4_bias_correction(each, self.shrink, self.iterations, self.levels) for each in channels]
            )
            d[key] = convert_to_dst_type(corrected, d[key], dtype=np.float32)[0]
        return d


def _check(shrink: int, iterations: int, levels: int) -> None:
    for name, value in (("shrink", shrink), ("iterations", iterations), ("levels", levels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
