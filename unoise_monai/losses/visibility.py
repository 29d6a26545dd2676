"""Trains a noise model on what maps are measured by: a share of the voxels visible, the others hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.checks import check_finite
from unoise_monai.losses.unoise import utility_loss
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter, tolerance_logits


class VisibleShare(nn.Module):
    """Hides all but a random share of the voxels, the least tolerant ones, and segments what is left.

    A training wrapper in the place of `UNoise`, for `VisibleShareLoss`, not from the papers: the noise model learns the
    order of an item's voxels, not the noise that a voxel can bear.

    Args:
        segmenter: the utility and the noise model; it is trained in place.
        value: what hidden voxels become, in units of normalised intensity; None to have noise alone.
        sigma: of the noise that is added to hidden voxels instead, in the same units; None to have the value alone.
            Where both are given, one of them is drawn for each item.
        shares: the smallest and the largest share of voxels that stay visible, drawn evenly for each item.

    Shape:
        ``(B, C, *spatial)`` to a pair: the utility's logits of the image so hidden ``(B, K, *spatial)``, and the
        tolerance logits ``z`` ``(B, 1, *spatial)``.

    Raises:
        ValueError: when ``value`` is not finite, ``sigma`` is not a finite number above 0, both are None, or ``shares``
            are not two numbers in order between 0 and 1; in ``forward``, as `UNoise`.
    """

    def __init__(
        self,
        segmenter: ExplainedSegmenter,
        value: float | None = 0.0,
        sigma: float | None = 5.0,
        shares: Sequence[float] = (0.02, 0.5),
    ) -> None:
        super().__init__()
        if value is None and sigma is None:
            raise ValueError("value or sigma must be given, got None for both")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"value must be a finite number, got {value}")
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be a finite number above 0, got {sigma}")
        if len(shares) != 2 or not 0 <= shares[0] <= shares[1] <= 1:
            raise ValueError(f"shares must be two numbers in order between 0 and 1, got {tuple(shares)}")
        self.segmenter, self.value, self.sigma = segmenter, value, sigma
        self.shares = (float(shares[0]), float(shares[1]))

    def forward(self, x: Image) -> tuple[Logits, VoxelMap]:
        check_finite(x, "image")
        z = tolerance_logits(self.segmenter, x)
        low, high = self.shares
        shown = visible(z.float(), low + (high - low) * torch.rand(len(x), device=x.device))
        fill = self.fill(x)
        return self.segmenter.utility(fill + shown.to(x.dtype) * (x - fill)), z

    def fill(self, x: Image) -> Image:
        """What each voxel becomes when it is hidden."""
        if self.sigma is None:
            return torch.full_like(x, self.value or 0.0)
        noised = x + self.sigma * torch.randn_like(x)
        if self.value is None:
            return noised
        return torch.where(_each(torch.rand(len(x), device=x.device) < 0.5, x), noised, self.value)


class VisibleShareLoss(nn.Module):
    """The utility loss of what stays visible, and a pull of each voxel's tolerance to its rank.

    The utility's loss depends on the order of the voxels alone. The pull, the mean of ``(z - logit(r))^2`` over the
    voxels with ``r`` the share of the item's voxels of lower tolerance, sets the scale: alone it would make
    ``B = sigmoid(z)`` that share; weak, it leaves the order alone and keeps maps from saturating.

    Args:
        calibration: the weight of the pull, at least 0.

    Shape:
        ``pred`` is the pair that `VisibleShare` returns: logits ``(B, K, *spatial)`` and tolerance logits
        ``(B, 1, *spatial)``; ``target`` holds class indices, ``(B, 1, *spatial)``. Returns a scalar.

    Raises:
        ValueError: when ``calibration`` is negative or not finite; in ``forward``, as `UNoiseLoss`.
    """

    def __init__(self, calibration: float = 0.01) -> None:
        super().__init__()
        if not 0 <= calibration < math.inf:
            raise ValueError(f"calibration must be a finite number of at least 0, got {calibration}")
        self.calibration = float(calibration)

    def forward(self, pred: tuple[Logits, VoxelMap], target: LabelMap) -> Tensor:
        logits, z = pred
        flat = z.float().flatten(1)
        # The middle of each voxel's place: no rank is 0 or 1, whose logits are infinite.
        rank = (_places(flat) + 0.5) / flat.shape[1]
        return utility_loss(logits, target) + self.calibration * F.mse_loss(flat, torch.logit(rank))


def visible(z: VoxelMap, share: Tensor) -> VoxelMap:
    """1 for the ``share`` ``(B,)`` of each item's voxels whose logits are lowest, else 0, with a gradient.

    The gradient is that of ``sigmoid(q - z)``, ``q`` the highest logit shown, held constant: a hidden voxel, too,
    learns whether it should be shown (straight-through estimator, Bengio et al., "Estimating or propagating gradients
    through stochastic neurons for conditional computation", 2013).
    """
    flat = z.detach().flatten(1)
    count = (share * flat.shape[1]).round().long()
    shown = (_places(flat) < count[:, None]).to(z.dtype).view_as(z)
    highest = flat.sort(dim=1).values.gather(1, count.clamp(min=1)[:, None] - 1)[:, 0]
    soft = torch.sigmoid(_each(highest, z) - z)
    return shown + (soft - soft.detach())


def _places(flat: Tensor) -> Tensor:
    """Of each value, how many in its row come before it in ascending order."""
    return flat.detach().argsort(dim=1).argsort(dim=1)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """One value an item, to go with ``like`` ``(B, C, *spatial)``."""
    return values.view(-1, *[1] * (like.ndim - 1))
