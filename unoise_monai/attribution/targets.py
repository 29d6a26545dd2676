"""Targets: the scalar of a segmentation that an attribution explains.

A target takes logits ``(B, K, *spatial)`` to one scalar an item, ``(B,)``. Where it needs to know what was segmented,
it is made from the logits of the *unperturbed* image, so that it stays what it is while the image is perturbed. Made
from one item, it serves any number of perturbed copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from unoise_monai.networks.outputs import probabilities, segmentation
from unoise_monai.types import LabelMap, Logits, VoxelMap

Target: TypeAlias = Callable[[Logits], Tensor]


def class_logits(logits: Logits, label: int) -> Tensor:
    """The logit of a class, ``(B, 1, *spatial)``; of one channel, its own for class 1 and minus it for class 0.

    Raises:
        ValueError: when the network has no such class.
    """
    classes = max(logits.shape[1], 2)
    if not 0 <= label < classes:
        raise ValueError(f"label must be a class of the network, 0 to {classes - 1}, got {label}")
    if logits.shape[1] == 1:
        return logits if label == 1 else -logits
    return logits[:, label : label + 1]


@dataclass(frozen=True)
class Region:
    """The sum or the mean of a class's logit over a region, such as the false positives.

    Args:
        mask: where it counts, ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``.
        label: the class.
        mean: over the region's voxels; else their sum.

    Raises:
        ValueError: when the region of an item is empty; in the call, when it lies on another grid than the logits, or
            is of another number of items.
    """

    mask: VoxelMap
    label: int
    mean: bool = True

    def __post_init__(self) -> None:
        voxels = self.mask.flatten(1).any(dim=1)
        if not bool(voxels.all()):
            empty = (~voxels).nonzero().flatten().tolist()
            raise ValueError(f"the region must hold at least one voxel of every item, got none of item {empty[0]}")

    def __call__(self, logits: Logits) -> Tensor:
        _check_grid("region", self.mask, logits)
        mask = self.mask.to(logits.dtype)
        total = (class_logits(logits, self.label) * mask).flatten(1).sum(dim=1)
        return total / mask.flatten(1).sum(dim=1) if self.mean else total


def class_sum(logits: Logits, label: int) -> Region:
    """The sum of a class's logit over the voxels that are segmented as that class.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021.

    Args:
        logits: of the unperturbed image, ``(B, K, *spatial)``.
        label: the class.

    Raises:
        ValueError: when an item has no such voxel, or the network no such class.
    """
    class_logits(logits, label)
    return Region((segmentation(logits) == label).detach(), label, mean=False)


def border_mean(logits: Logits, label: int) -> Region:
    """The mean of a class's logit over its border: its voxels with a face-neighbour that is background.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images": a border defines its segment.

    Args:
        logits: of the unperturbed image, ``(B, K, *spatial)``.
        label: the class, above 0.

    Raises:
        ValueError: when an item has no such voxel, or the network no such class, or it is the background.
    """
    if label == 0:
        raise ValueError("label must be above 0, the background has no border with itself, got 0")
    class_logits(logits, label)
    return Region(border(segmentation(logits).detach(), label), label)


def border(labels: LabelMap, label: int) -> VoxelMap:
    """Voxels of a class that have a face-neighbour (4 in 2D, 6 in 3D) of class 0, ``(B, 1, *spatial)``, bool."""
    background = (labels == 0).float()
    touched = torch.zeros_like(background, dtype=torch.bool)
    for axis in range(2, labels.ndim):
        window = [3 if other == axis else 1 for other in range(2, labels.ndim)]
        pool = F.max_pool2d if labels.ndim == 4 else F.max_pool3d
        touched |= pool(background, window, stride=1, padding=[side // 2 for side in window]) > 0
    return touched & (labels == label)


def voxel(index: Sequence[int], label: int, size: Sequence[int]) -> Region:
    """The logit of a class in a single voxel of a volume of ``size``.

    Raises:
        ValueError: when the voxel lies outside.
    """
    if len(index) != len(size) or not all(0 <= at < side for at, side in zip(index, size, strict=True)):
        raise ValueError(f"index must lie inside {tuple(size)}, got {tuple(index)}")
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[(0, 0, *index)] = True
    return Region(mask, label)


@dataclass(frozen=True)
class SoftDice:
    """Dice of the predicted probability of a class against a label.

    Args:
        labels: class indices, ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``.
        label: the class, above 0.

    Raises:
        ValueError: in the call, when the label lies on another grid than the logits, or is of another number of items.
    """

    labels: LabelMap
    label: int

    def __call__(self, logits: Logits) -> Tensor:
        _check_grid("label", self.labels, logits)
        class_logits(logits, self.label)
        shares = probabilities(logits)
        predicted = shares if logits.shape[1] == 1 else shares[:, self.label : self.label + 1]
        truth = (self.labels == self.label).to(predicted.dtype).expand_as(predicted)
        overlap = (predicted * truth).flatten(1).sum(dim=1)
        return 2 * overlap / (predicted.flatten(1).sum(dim=1) + truth.flatten(1).sum(dim=1)).clamp_min(1e-6)


@dataclass(frozen=True)
class Difference:
    """What speaks for one target and against another, such as tumour against organ."""

    first: Target
    second: Target

    def __call__(self, logits: Logits) -> Tensor:
        return self.first(logits) - self.second(logits)


def _check_grid(name: str, volume: Tensor, logits: Logits) -> None:
    if volume.shape[1:] != (1, *logits.shape[2:]) or volume.shape[0] not in (1, logits.shape[0]):
        raise ValueError(f"{name} must lie on the grid of the logits {tuple(logits.shape)}, got {tuple(volume.shape)}")
