"""The objective that trains a noise model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.losses.noise_ratio import DualNoiseRatio
from unoise_monai.types import LabelMap, Logits, VoxelMap


class UNoiseLoss(nn.Module):
    """Utility loss of the noised image minus the noise ratio times the mean log tolerance.

    ``-log Pr(y | U(x')) - lambda * mean(log B)``, Koker et al., "U-Noise", 2021, section 3. A utility with one output
    channel is binary (sigmoid), one with more is multi-class (softmax).

    Args:
        noise_ratio: lambda, a number of at least 0; or a `DualNoiseRatio`, which finds it during training.

    Shape:
        ``pred`` is the pair that `UNoise` returns: logits ``(B, K, *spatial)`` and tolerance logits
        ``(B, 1, *spatial)``; ``target`` holds class indices, ``(B, 1, *spatial)``. Returns a scalar.

    Raises:
        ValueError: when ``noise_ratio`` is a number that is negative or not finite; in ``forward``, when ``target``
            is not one channel on the grid of the logits.
    """

    def __init__(self, noise_ratio: float | DualNoiseRatio = 1e-3) -> None:
        super().__init__()
        if not isinstance(noise_ratio, DualNoiseRatio) and not (math.isfinite(noise_ratio) and noise_ratio >= 0):
            raise ValueError(f"noise_ratio must be a finite number of at least 0, got {noise_ratio}")
        self.noise_ratio = noise_ratio

    def forward(self, pred: tuple[Logits, VoxelMap], target: LabelMap) -> Tensor:
        logits, z = pred
        # log(sigmoid(z)) underflows where logsigmoid does not.
        return utility_loss(logits, target) - float(self.noise_ratio) * F.logsigmoid(z.float()).mean()


def utility_loss(logits: Logits, target: LabelMap) -> Tensor:
    """Mean cross-entropy of the segmentation, ``-log Pr(y | U(x))``, binary for one channel and softmax for more.

    Shape:
        ``logits`` ``(B, K, *spatial)``, ``target`` class indices ``(B, 1, *spatial)``. Returns a scalar.

    Raises:
        ValueError: when ``target`` is not one channel on the grid of the logits.
    """
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(f"target must hold class indices in one channel, {expected}, got {tuple(target.shape)}")
    logits = logits.float()
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return F.cross_entropy(logits, target[:, 0].to(torch.long))
