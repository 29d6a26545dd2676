"""Dice of a segmentation as a target: for methods that hide parts of the image, as it has no gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from monai.metrics import compute_dice
from torch import Tensor

from unoise_monai.attribution.items import check_grid, check_voxels, item_of
from unoise_monai.attribution.targets import class_logits
from unoise_monai.networks.outputs import segmentation
from unoise_monai.types import LabelMap, Logits


@dataclass(frozen=True)
class HardDice:
    """Dice of what is segmented as a class against a label.

    It has no gradient: methods that differentiate the target need `SoftDice`.

    Args:
        labels: class indices, ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``.
        label: the class.

    Raises:
        ValueError: when an item has no voxel of the class; in the call, when the label lies on another grid than the
            logits, or is of another number of items.
    """

    labels: LabelMap
    label: int

    def __post_init__(self) -> None:
        check_voxels(f"class {self.label}", self.labels == self.label)

    def __call__(self, logits: Logits) -> Tensor:
        check_grid("label", self.labels, logits)
        class_logits(logits, self.label)
        truth = (self.labels == self.label).expand(len(logits), *self.labels.shape[1:]).to(logits.device)
        predicted = segmentation(logits) == self.label
        return compute_dice(predicted, truth).flatten().to(torch.float32)

    def item(self, index: int) -> HardDice:
        return replace(self, labels=item_of(self.labels, index))


def unperturbed_dice(logits: Logits, label: int) -> HardDice:
    """Dice against the segmentation of the unperturbed image: 1 as long as nothing changes.

    Koker et al., "U-Noise", 2021, section 4.2, report it for occlusions.

    Args:
        logits: of the unperturbed image, ``(B, K, *spatial)``.
        label: the class.

    Raises:
        ValueError: when an item has no such voxel, or the network no such class.
    """
    class_logits(logits, label)
    return HardDice(segmentation(logits).detach(), label)
