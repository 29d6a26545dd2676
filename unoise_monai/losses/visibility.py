"""Trains a noise model on what maps are measured by: a share of the voxels visible, the others hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unoise_monai.checks import check_finite
from unoise_monai.types import Image, Logits, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter, tolerance_logits


class VisibleShare(nn.Module):
    """Hides all but a random share of the voxels, the least tolerant ones, and segments what is left.

    A training wrapper in the place of `UNoise`, with the same loss (`UNoiseLoss` with ``noise_ratio=0``: how much is
    hidden is given, not learned). The noise model learns the order of an item's voxels and nothing else: its tolerance
    in numbers is not noise that a voxel can bear. Not from the papers.

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
        self.segmenter = segmenter
        self.value = value
        self.sigma = sigma
        self.shares = (float(shares[0]), float(shares[1]))

    def forward(self, x: Image) -> tuple[Logits, VoxelMap]:
        check_finite(x, "image")
        z = tolerance_logits(self.segmenter, x)
        low, high = self.shares
        shown = visible(z.float(), low + (high - low) * torch.rand(len(x), device=x.device))
        return self.segmenter.utility(self.hidden(x, shown)), z

    def hidden(self, x: Image, shown: VoxelMap) -> Image:
        """The image where ``shown`` is 1, filled where it is 0; differentiable in ``shown``."""
        fill = self.fill(x)
        return fill + shown.to(x.dtype) * (x - fill)

    def fill(self, x: Image) -> Image:
        """What each voxel becomes when it is hidden."""
        if self.sigma is None:
            return torch.full_like(x, self.value or 0.0)
        noised = x + self.sigma * torch.randn_like(x)
        if self.value is None:
            return noised
        return torch.where(_each(torch.rand(len(x), device=x.device) < 0.5, x), noised, self.value)


def visible(z: VoxelMap, share: Tensor) -> VoxelMap:
    """1 for the ``share`` ``(B,)`` of each item's voxels whose logits are lowest, else 0, with a gradient.

    The gradient is that of ``sigmoid((q - z) / width)``, ``q`` the highest logit shown and ``width`` the standard
    deviation of the item's logits, both held constant: a hidden voxel, too, learns whether it should be shown
    (straight-through estimator, Bengio et al., "Estimating or propagating gradients through stochastic neurons for
    conditional computation", 2013).
    """
    flat = z.detach().flatten(1)
    count = (share * flat.shape[1]).round().long()
    shown = (flat.argsort(dim=1).argsort(dim=1) < count[:, None]).to(z.dtype).view_as(z)
    highest = flat.sort(dim=1).values.gather(1, count.clamp(min=1)[:, None] - 1)[:, 0]
    width = flat.std(dim=1).clamp(min=torch.finfo(z.dtype).eps)
    soft = torch.sigmoid((_each(highest, z) - z) / _each(width, z))
    return shown + (soft - soft.detach())


def _each(values: Tensor, like: Tensor) -> Tensor:
    """One value an item, to go with ``like`` ``(B, C, *spatial)``."""
    return values.view(-1, *[1] * (like.ndim - 1))
