"""How alike two maps are: by the order of their voxels, and by their structure."""

from __future__ import annotations

import torch
from monai.metrics.regression import SSIMMetric
from monai.transforms.utils import rescale_array
from torch import Tensor

from unoise_monai.types import VoxelMap

WINDOW = 11
"""Voxels a side of the Gaussian window of `structural_similarity`, as MONAI and Wang et al. have it."""


def rank_correlation(first: VoxelMap, second: VoxelMap, where: VoxelMap | None = None) -> Tensor:
    """Spearman's rank correlation of two maps, equal values sharing their mean rank, ``(B,)`` in [-1, 1], float64.

    Of a map without contrast it is undefined: taken as 1 where neither map has any, as 0 where one has.

    Args:
        first: ``(B, 1, *spatial)``.
        second: ``(B, 1, *spatial)``.
        where: the voxels that count, bool ``(B, 1, *spatial)``; None for all.
    """
    counts = torch.ones_like(first, dtype=torch.bool) if where is None else where
    return torch.stack(
        [_correlation(_ranks(a[c]), _ranks(b[c])) for a, b, c in zip(first, second, counts, strict=True)]
    )


def structural_similarity(first: VoxelMap, second: VoxelMap) -> Tensor:
    """SSIM of two maps, each scaled to [0, 1] within its item (one without contrast to 0), by MONAI, ``(B,)``.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004. It is the mean over
    the windows that lie inside; where a side is shorter than `WINDOW`, the window is the longest odd one that fits.
    """
    window = [min(WINDOW, side - 1 + side % 2) for side in first.shape[2:]]
    metric = SSIMMetric(first.ndim - 2, data_range=1.0, win_size=window, reduction="none")
    scaled = [torch.stack([rescale_array(item, 0.0, 1.0, dtype=None) for item in maps]) for maps in (second, first)]
    return metric(*scaled).flatten().double()


def _ranks(values: Tensor) -> Tensor:
    """Ranks of values ``(N,)``, about their mean."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    counts = counts.double()
    ranks = counts.cumsum(0) - (counts - 1) / 2
    # Halves of integers, so those of a constant map are exactly 0.
    return ranks[group] - (len(values) + 1) / 2


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    norms = torch.stack([first.norm(), second.norm()])
    if not bool(norms.all()):
        return (norms == 0).all().double()
    return (first @ second / norms.prod()).clamp(-1, 1)
