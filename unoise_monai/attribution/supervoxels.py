"""Supervoxels: compact pieces of an image that follow its edges, as features that are hidden together."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import SimpleITK as sitk
import torch

from unoise_monai.checks import check_finite
from unoise_monai.types import Image, LabelMap


def supervoxels(
    image: Image, size: int | Sequence[int] = 16, compactness: float = 1.0, within: LabelMap | None = None
) -> LabelMap:
    """Cut a volume into supervoxels of about ``size`` voxels a side, numbered from 0 without gaps.

    SLIC: Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", 2012, as SimpleITK has it,
    over all channels. Background of one intensity is cut, too, into blocks.

    Args:
        image: one item, ``(1, C, *spatial)``.
        size: voxels a side, one number or one an axis.
        compactness: how much distance counts, in units of each channel's standard deviation across one supervoxel:
            higher makes them cubes, lower lets them follow fainter edges, and noise.
        within: a label map, ``(1, 1, *spatial)``, such as organs, whose borders no supervoxel crosses.

    Shape:
        ``(1, C, *spatial)`` to int64 ``(1, 1, *spatial)``, on the image's device.

    Raises:
        ValueError: when the image is not one item or holds NaN or infinite voxels, ``size`` is not a whole number of
            at least 1 or not one number an axis, ``compactness`` is not above 0, or ``within`` lies on another grid.
    """
    check_supervoxels(size, compactness)
    # SimpleITK's SLIC crashes the process on NaN.
    check_finite(image, "image")
    spatial = tuple(image.shape[2:])
    if len(image) != 1:
        raise ValueError(f"image must be one item, (1, C, *spatial), got {tuple(image.shape)}")
    sides = [int(side) for side in (size if isinstance(size, Sequence) else [size] * len(spatial))]
    if len(sides) != len(spatial):
        raise ValueError(f"size must be one number or {len(spatial)}, one an axis, got {size}")
    if within is not None and within.shape != (1, 1, *spatial):
        raise ValueError(f"within must lie on the image's grid {(1, 1, *spatial)}, got {tuple(within.shape)}")
    values = image[0].detach().cpu().double().movedim(0, -1)
    spread = values.flatten(0, -2).std(dim=0, correction=0)
    scaled = (values / spread.where(spread > 0, 1.0)).float().contiguous().numpy()
    # SimpleITK counts axes from the fastest, numpy from the slowest.
    grid = [min(pair) for pair in zip(sides, spatial, strict=True)][::-1]
    slic = sitk.SLIC(sitk.GetImageFromArray(scaled, isVector=True), grid, compactness)
    labels = torch.from_numpy(sitk.GetArrayFromImage(slic).astype(np.int64))[None, None].to(image.device)
    pieces, _ = numbered(labels)
    if within is None:
        return pieces
    regions, count = numbered(within.to(image.device))
    return numbered(pieces * count + regions)[0]


def numbered(labels: LabelMap) -> tuple[LabelMap, int]:
    """The values of a label map numbered from 0 without gaps, int64, and how many there are."""
    values, numbers = torch.unique(torch.as_tensor(labels), return_inverse=True)
    return numbers, len(values)


def check_supervoxels(size: int | Sequence[int], compactness: float) -> None:
    """Refuse sizes that are no whole numbers of at least 1, and a compactness that is not above 0.

    Raises:
        ValueError: when ``size`` is no such number, or one an axis, or ``compactness`` out of range.
    """
    if not all(isinstance(side, Integral) and side >= 1 for side in (size if isinstance(size, Sequence) else [size])):
        raise ValueError(f"size must be integers of at least 1, one or one an axis, got {size!r}")
    if not compactness > 0:
        raise ValueError(f"compactness must be above 0, got {compactness}")
