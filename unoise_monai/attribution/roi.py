"""From a noisy saliency map to a region of interest: a threshold, then mean convolutions and thresholds by turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F

from unoise_monai.checks import check_fraction
from unoise_monai.types import VoxelMap

PAPER_BOX = 11
"""Voxels a side of the paper's box, for pictures of `PAPER_SIDE`."""
PAPER_SIDE = 224


@dataclass(frozen=True)
class RegionOfInterest:
    """Outlines what a saliency map points at.

    Bordes et al., "Iteratively unveiling new regions of interest in deep learning models", 2018, section 2: "computes
    iteratively a score (mean over a neighborhood of pixels) and assigns a threshold". The paper leaves the thresholds
    open. Here a voxel is in at first where its saliency reaches ``level`` times the ``quantile`` of the saliencies
    above 0; then, in each pass, where at least ``threshold`` of the voxels in the box around it are in. Only voxels
    that lie in the image and are visible count.

    Args:
        level: share of the full saliency.
        quantile: which saliency counts as full: 1 for the largest. Gradients have long tails, in which the largest says
            little of the others.
        box: odd number of voxels, one or one an axis; None for the paper's 11 in proportion, see `proportional_box`.
        passes: how often the mean and the threshold are taken, in the paper three times.
        threshold: of the mean. With 0.5, a voxel takes the value of most of its neighbours, as the paper words it: what
            is thinner than about half the box vanishes. Below, regions grow with every pass and with the box, as the
            paper finds; above, they shrink.

    Raises:
        ValueError: when a share is not above 0 and at most 1, a side of the box not odd and above 0, or ``passes``
            negative.
    """

    level: float = 0.25
    quantile: float = 0.99
    box: int | Sequence[int] | None = None
    passes: int = 3
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("level", "quantile", "threshold"):
            check_fraction(name, getattr(self, name))
        sides = [] if self.box is None else [self.box] if isinstance(self.box, int) else self.box
        if not all(side > 0 and side % 2 for side in sides):
            raise ValueError(f"box must hold odd numbers above 0, got {self.box}")
        if self.passes < 0:
            raise ValueError(f"passes must be at least 0, got {self.passes}")

    def __call__(self, saliency: VoxelMap, visible: VoxelMap) -> VoxelMap:
        """The region, ``(1, 1, *spatial)``, bool, of the saliency, at least 0, of one item's visible voxels."""
        box = proportional_box(saliency.shape[2:]) if self.box is None else self.box
        seeds = binarised(saliency * visible, self.level, self.quantile)
        return smoothed(seeds, visible, box, self.passes, self.threshold)


def proportional_box(size: Sequence[int]) -> tuple[int, ...]:
    """The paper's box in proportion to a volume: for each side the odd number next to 11/224 of it, from 3 to 11.

    Eleven voxels are about half a hippocampus: in three crops of some 35 x 51 x 35, of SmoothGrad maps the box of
    11 left no region at all, that of 3 regions of 2200 to 2600 voxels. The paper, too, asks for small boxes where
    small things are looked for.
    """
    return tuple(min(max(2 * round((side * PAPER_BOX / PAPER_SIDE - 1) / 2) + 1, 3), PAPER_BOX) for side in size)


def binarised(saliency: VoxelMap, level: float, quantile: float) -> VoxelMap:
    """Where a saliency reaches ``level`` times the ``quantile`` of what is above 0, bool."""
    found = saliency[saliency > 0]
    if not found.numel():
        return torch.zeros_like(saliency, dtype=torch.bool)
    full = found.kthvalue(math.ceil(quantile * found.numel())).values
    return saliency >= level * full


def smoothed(mask: VoxelMap, visible: VoxelMap, box: Sequence[int] | int, passes: int, threshold: float) -> VoxelMap:
    """Let each visible voxel be in where enough of the visible ones in the box around it are, ``passes`` times.

    Shape:
        both masks ``(B, 1, *spatial)``, to bool of the same shape.
    """
    sides = ensure_tuple_rep(box, mask.ndim - 2)
    within = visible.float()
    # Sums of ones are exact, and so their quotient rounds to no other side of a threshold.
    neighbours = _box_sum(within, sides).double().clamp_min(1)
    found = mask * within
    for _ in range(passes):
        found = (_box_sum(found, sides).double() / neighbours >= threshold) * within
    return found > 0


def _box_sum(volume: Tensor, sides: Sequence[int]) -> Tensor:
    """The sum over a box, one axis after the other; beyond the volume there is 0."""
    pool = F.avg_pool2d if volume.ndim == 4 else F.avg_pool3d
    for axis, side in enumerate(sides):
        window = [side if other == axis else 1 for other in range(len(sides))]
        volume = pool(volume, window, stride=1, padding=[width // 2 for width in window], divisor_override=1)
    return volume
