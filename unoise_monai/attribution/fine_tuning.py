"""A few steps of training on one partly hidden volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.types import Image, LabelMap, Logits

OUTSIDE = -1
"""Marks the padding, which has no label."""


@dataclass(frozen=True)
class FineTuning:
    """Trains a network, in place, on what it still sees of a volume.

    Adam on the cross-entropy, the mean over all voxels, those that are hidden included; in fp32. The network stays in
    the mode that it is in: in evaluation mode norms keep the statistics that they have learned. Where the volume goes
    through in tiles, their gradients add up to that of the whole.

    Args:
        steps: of Adam, each a pass forward and back.
        lr: its learning rate.

    Raises:
        ValueError: when ``steps`` is below 1 or ``lr`` not a finite number above 0; in the call, when the truth is not
            one channel on the image's grid, or holds what is no class of the network.
    """

    steps: int = 10
    lr: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")

    def __call__(self, network: nn.Module, image: Image, truth: LabelMap, memory_gb: float | None = None) -> None:
        """Train ``network`` to segment ``image`` as ``truth``, within ``memory_gb`` beside Adam's own state."""
        check_truth(truth, image)
        volume = VolumeNetwork(network, memory_gb)
        padded = volume.pad(image.detach())
        labels = _padded_labels(truth, padded)
        parameters = list(network.requires_grad_().parameters())
        optimiser = torch.optim.Adam(parameters, self.lr)
        everything = (slice(None),) * (image.ndim - 2)
        with torch.enable_grad():
            tiles = volume.tiles(padded) or [(everything, everything, everything)]
            try:
                for _ in range(self.steps):
                    for window, core, inner in tiles:
                        logits = volume.predict(padded[(..., *window)])[(..., *inner)]
                        check_classes(truth, logits)
                        (_entropy(logits, labels[(..., *core)]) / truth.numel()).backward()
                    optimiser.step()
                    optimiser.zero_grad()
            finally:
                network.requires_grad_(False)


def check_truth(truth: LabelMap, image: Image) -> None:
    """Refuse a label on another grid than the image.

    Raises:
        ValueError: when it is not one channel on that grid.
    """
    expected = (len(image), 1, *image.shape[2:])
    if tuple(truth.shape) != expected:
        raise ValueError(f"truth must be one channel on the image's grid, {expected}, got {tuple(truth.shape)}")


def check_classes(truth: LabelMap, logits: Logits) -> None:
    """Refuse labels that are no class of the network.

    Raises:
        ValueError: when one is below 0 or above the last class.
    """
    last, lowest, highest = max(logits.shape[1], 2) - 1, int(truth.min()), int(truth.max())
    if lowest < 0 or highest > last:
        raise ValueError(f"truth must hold classes of the network, 0 to {last}, got {lowest} to {highest}")


def _padded_labels(truth: LabelMap, padded: Image) -> Tensor:
    """The label on the image's device, and on the grid that it is padded to."""
    missing = [wide - side for side, wide in zip(truth.shape[2:], padded.shape[2:], strict=True)]
    labels = truth[:, 0].to(padded.device, torch.long)
    return F.pad(labels, [n for end in reversed(missing) for n in (0, end)], value=OUTSIDE)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over voxels that have a label. A sigmoid of z is a softmax over 0 and z."""
    classes = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
    return F.cross_entropy(classes, labels, ignore_index=OUTSIDE, reduction="sum")
