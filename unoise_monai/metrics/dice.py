"""Dice of the foreground classes, from logits."""

from __future__ import annotations

from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from torch import Tensor

from unoise_monai.networks.outputs import segmentation
from unoise_monai.types import LabelMap, Logits


def foreground_dice(logits: Logits, label: LabelMap) -> Tensor:
    """Hard Dice of every foreground class; NaN where the label has none of it.

    Shape:
        ``logits`` ``(B, K, *spatial)`` and ``label`` class indices ``(B, 1, *spatial)`` to ``(B, max(K - 1, 1))``.
    """
    return compute_dice(*segmentation_pair(logits, label), include_background=False, ignore_empty=True)


def segmentation_pair(logits: Logits, label: LabelMap) -> tuple[Tensor, Tensor]:
    """One-hot prediction and label, as MONAI's metric handlers take them, ``(B, max(K, 2), *spatial)`` each."""
    classes = max(logits.shape[1], 2)
    return one_hot(segmentation(logits), num_classes=classes), one_hot(label.long(), num_classes=classes)
