"""The loss of U-Noise and its noise ratio lambda."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.checks import check_choice, check_fraction
from unoise_monai.types import LabelMap, Logits, VoxelMap

QUANTITIES = ("dice", "loss")


class DualNoiseRatio(nn.Module):
    """The noise ratio as the multiplier of a constraint: so much of the clean image's Dice or loss must survive.

    Dual ascent on the logarithm of lambda: while the survival, noised Dice / clean Dice (or clean loss / noised loss),
    averaged over the steps, is above ``keep`` lambda grows, below it shrinks.

    Args:
        keep: the share that must survive, above 0 and below 1.
        of: ``"dice"`` or ``"loss"``.
        start: lambda before the first update.
        rate: largest change of log lambda in one update.
        smoothing: weight of the past in the running survival, at least 0 and below 1.
        bounds: lambda never leaves this range.

    Raises:
        ValueError: when an argument is outside its range; the message names it, the rule and the value.
    """

    log_ratio: Tensor
    survival: Tensor

    def __init__(
        self,
        keep: float = 0.95,
        of: str = "dice",
        start: float = 1e-3,
        rate: float = 0.05,
        smoothing: float = 0.9,
        bounds: tuple[float, float] = (1e-6, 10.0),
    ) -> None:
        super().__init__()
        check_fraction("keep", keep)
        check_choice("of", of, QUANTITIES)
        if keep == 1:
            raise ValueError(f"keep must be below 1, or no noise at all is allowed, got {keep}")
        if not 0 < bounds[0] <= start <= bounds[1]:
            raise ValueError(f"start must lie inside bounds, above 0, got {start} and {tuple(bounds)}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be a finite number above 0, got {rate}")
        self.keep, self.of, self.rate, self.smoothing = keep, of, rate, smoothing
        self.log_bounds = (math.log(bounds[0]), math.log(bounds[1]))
        # Buffers, so that a continued run goes on from the ratio that it had reached.
        self.register_buffer("log_ratio", torch.tensor(math.log(start), dtype=torch.float64))
        self.register_buffer("survival", torch.tensor(math.nan, dtype=torch.float64))

    def __float__(self) -> float:
        return math.exp(float(self.log_ratio))

    def update(self, noised: float, clean: float) -> float:
        """Move lambda by one step, from one batch's Dice or loss with and without noise; returns lambda.

        A batch without information (clean Dice 0, either loss 0, NaN) moves nothing.
        """
        numerator, denominator = (noised, clean) if self.of == "dice" else (clean, noised)
        if not (clean > 0 and denominator > 0 and math.isfinite(numerator)):
            return float(self)
        share = min(numerator / denominator, 1.0)
        past = share if math.isnan(float(self.survival)) else float(self.survival)
        self.survival.fill_(self.smoothing * past + (1 - self.smoothing) * share)
        # 1 when everything survives, -1 when twice as much is lost as may be.
        room = max(-1.0, (float(self.survival) - self.keep) / (1 - self.keep))
        low, high = self.log_bounds
        self.log_ratio.fill_(min(max(float(self.log_ratio) + self.rate * room, low), high))
        return float(self)


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
