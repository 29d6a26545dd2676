"""Losses that train a utility network, for labels that may be soft."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceLoss, TverskyLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.networks.modes import probabilities
from unoise_monai.types import LabelMap, Logits

SMALLEST_LOSS = 1e-6
"""The power of a loss of 0 has an infinite slope; below this the slope is 0."""

ROUNDING = 1e-4
"""How far interpolation may have carried a share out of [0, 1]."""


def soft_labels(target: LabelMap | Tensor, classes: int) -> Tensor:
    """The share of every class in each voxel, as float32.

    Shape:
        class indices ``(B, 1, *spatial)``, or shares ``(B, K, *spatial)`` which come back as they are, to
        ``(B, K, *spatial)``; for one class, the foreground's share.

    Raises:
        ValueError: when ``target`` has neither one channel nor ``classes``, or shares outside [0, 1].
    """
    if target.shape[1] not in (1, classes):
        raise ValueError(f"target must have 1 channel or {classes}, got shape {tuple(target.shape)}")
    if target.shape[1] != classes:
        return one_hot(target.long(), num_classes=classes)
    shares = target.float()
    if shares.numel() and not (shares.min() >= -ROUNDING and shares.max() <= 1 + ROUNDING):
        raise ValueError(f"target must hold shares in [0, 1], got {float(shares.min())} to {float(shares.max())}")
    return shares


def full_resolution(pred: Any) -> Logits:
    """The first tensor of what a network gives in training: a tensor, or lists of tensors within one another."""
    while not isinstance(pred, Tensor):
        pred = pred[0]
    return pred


class FocalTverskyLoss(nn.Module):
    """``(1 - Tversky index) ** power``, which looks for small structures: a missed voxel weighs more than a false one.

    Abraham and Khan, "A novel focal Tversky loss function with improved attention U-Net for lesion segmentation", 2019,
    with the values of Chatterjee et al., "DS6", 2022. Sums run over the whole batch; of several classes the foreground
    ones are averaged.

    Args:
        false_negatives: weight of the voxels that are missed.
        false_positives: weight of the voxels that are wrongly found.
        power: of the loss of each class.
        smooth: added to the numerator and the denominator of the index.

    Shape:
        logits ``(B, K, *spatial)``, and class indices ``(B, 1, *spatial)`` or shares ``(B, K, *spatial)``. A scalar.

    Raises:
        ValueError: when an argument is not a finite number above 0.
    """

    def __init__(
        self, false_negatives: float = 0.7, false_positives: float = 0.3, power: float = 0.75, smooth: float = 1.0
    ) -> None:
        super().__init__()
        weights = {"false_negatives": false_negatives, "false_positives": false_positives}
        for name, value in {**weights, "power": power, "smooth": smooth}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        self.power = power
        # MONAI's alpha weighs the false positives. With soft labels the loss of a label against itself is 0.
        self.tversky = TverskyLoss(
            alpha=false_positives,
            beta=false_negatives,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=True,
            soft_label=True,
            reduction="none",
        )

    def forward(self, logits: Logits, target: LabelMap | Tensor) -> Tensor:
        loss = self.tversky(*_foreground(probabilities(logits), soft_labels(target, logits.shape[1])))
        return (loss.clamp_min(SMALLEST_LOSS) ** self.power).mean()


class BCEIoUDiceLoss(nn.Module):
    """Cross-entropy + (1 - IoU) + (1 - Dice), in equal weights.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images", Eq. 5. IoU and Dice are those
    of each image, averaged. Of several classes the foreground ones are averaged; the cross-entropy is of the softmax.

    Shape:
        logits ``(B, K, *spatial)``, and class indices ``(B, 1, *spatial)`` or shares ``(B, K, *spatial)``. A scalar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss()
        self.iou = DiceLoss(jaccard=True)

    def forward(self, logits: Logits, target: LabelMap | Tensor) -> Tensor:
        logits = logits.float()
        shares = soft_labels(target, logits.shape[1])
        binary = logits.shape[1] == 1
        entropy = F.binary_cross_entropy_with_logits(logits, shares) if binary else F.cross_entropy(logits, shares)
        pair = _foreground(probabilities(logits), shares)
        return entropy + self.iou(*pair) + self.dice(*pair)


class MultiScaleLoss(nn.Module):
    """The weighted sum of a loss over the scales that a network gives in training, finest first.

    Chatterjee et al., "DS6", 2022. Coarse logits are interpolated to the label's grid: a thin vessel would not survive
    the way down to theirs. A single tensor, which a network gives in evaluation mode, counts as the finest scale.

    Args:
        loss: of logits and labels on one grid.
        weights: of the scales.

    Shape:
        logits ``(B, K, *spatial)``, or a list of them at several resolutions; labels as ``loss`` takes them. A scalar.

    Raises:
        ValueError: when a weight is negative or not finite; in ``forward``, when there are more scales than weights.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] = (1.0, 0.66, 0.34)) -> None:
        super().__init__()
        if not weights or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError(f"weights must be finite numbers of at least 0, one or more, got {list(weights)}")
        self.loss, self.weights = loss, tuple(weights)

    def forward(self, pred: Logits | Sequence[Logits], target: LabelMap | Tensor) -> Tensor:
        scales = [pred] if isinstance(pred, Tensor) else list(pred)
        if len(scales) > len(self.weights):
            raise ValueError(f"weights must hold one for each of {len(scales)} scales, got {len(self.weights)}")
        size = target.shape[2:]
        mode = "bilinear" if len(size) == 2 else "trilinear"
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(self.weights, scales, strict=False):
            finest = logits.float() if logits.shape[2:] == size else F.interpolate(logits.float(), size, mode=mode)
            total = total + weight * self.loss(finest, target)
        return total


def _foreground(*maps: Tensor) -> tuple[Tensor, ...]:
    return tuple(each[:, 1:] if each.shape[1] > 1 else each for each in maps)
