"""Losses of noise models: U-Noise's, with its noise ratio lambda, and Dice with a share of the voxels visible."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.checks import check_choice, check_finite, check_fraction
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter, tolerance_logits

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
