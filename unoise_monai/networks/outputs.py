"""What the logits of a segmentation network say."""

from __future__ import annotations

import torch
from torch import Tensor

from unoise_monai.types import LabelMap, Logits


def segmentation(logits: Logits) -> LabelMap:
    """Class indices from logits: the threshold 0 of one channel, the largest of more.

    Shape:
        ``(B, K, *spatial)`` to ``(B, 1, *spatial)``.
    """
    return (logits > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1, keepdim=True)


def probabilities(logits: Logits) -> Tensor:
    """Sigmoid of one channel, softmax over more, ``(B, K, *spatial)``, float32."""
    return torch.sigmoid(logits.float()) if logits.shape[1] == 1 else torch.softmax(logits.float(), dim=1)
