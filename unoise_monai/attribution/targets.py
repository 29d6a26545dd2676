"""Targets: the scalar of a segmentation that an attribution explains.

A target takes logits ``(B, K, *spatial)`` to one scalar an item, ``(B,)``. Where it needs to know what was segmented,
it is made from the logits of the *unperturbed* image, so that it stays what it is while the image is perturbed. Made
from one item, it serves any number of perturbed copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unoise_monai.attribution.items import check_grid, check_voxels, item_of
from unoise_monai.networks.outputs import probabilities, segmentation
from unoise_monai.types import LabelMap, Logits, VoxelMap

Target: TypeAlias = Callable[[Logits], Tensor]


def of_item(target: Target, index: int) -> Target:
    """The target of one item of a batch: its ``item(index)`` where it has one, else itself."""
    item: Any = getattr(target, "item", None)
    return target if item is None else item(index)


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
        check_voxels("the region", self.mask)

    def __call__(self, logits: Logits) -> Tensor:
        check_grid("region", self.mask, logits)
        mask = self.mask.to(logits)
        total = (class_logits(logits, self.label) * mask).flatten(1).sum(dim=1)
        return total / mask.flatten(1).sum(dim=1) if self.mean else total

    def item(self, index: int) -> Region:
        return replace(self, mask=item_of(self.mask, index))


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
        ValueError: when ``label`` is below 1; in the call, when the label lies on another grid than the logits, or is
            of another number of items.
    """

    labels: LabelMap
    label: int

    def __post_init__(self) -> None:
        if self.label < 1:
            raise ValueError(f"label must be at least 1, got {self.label}")

    def __call__(self, logits: Logits) -> Tensor:
        check_grid("label", self.labels, logits)
        class_logits(logits, self.label)
        shares = probabilities(logits)
        predicted = shares if logits.shape[1] == 1 else shares[:, self.label : self.label + 1]
        truth = (self.labels == self.label).to(predicted).expand_as(predicted)
        overlap = (predicted * truth).flatten(1).sum(dim=1)
        return 2 * overlap / (predicted.flatten(1).sum(dim=1) + truth.flatten(1).sum(dim=1)).clamp_min(1e-6)

    def item(self, index: int) -> SoftDice:
        return replace(self, labels=item_of(self.labels, index))


@dataclass(frozen=True)
class Difference:
    """What speaks for one target and against another, such as tumour against organ."""

    first: Target
    second: Target

    def __call__(self, logits: Logits) -> Tensor:
        return self.first(logits) - self.second(logits)

    def item(self, index: int) -> Difference:
        return Difference(of_item(self.first, index), of_item(self.second, index))


@dataclass(frozen=True)
class Foreground:
    """The sum of every foreground voxel's logit of the class that it is segmented as: all classes at once.

    Args:
        labels: the segmentation of the unperturbed image, ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``.

    Raises:
        ValueError: when an item has no foreground; in the call, when it lies on another grid than the logits, or is of
            another number of items.
    """

    labels: LabelMap

    def __post_init__(self) -> None:
        check_voxels("the region", self.labels > 0)

    def __call__(self, logits: Logits) -> Tensor:
        check_grid("segmentation", self.labels, logits)
        labels = self.labels.to(logits.device, torch.long).expand(len(logits), *self.labels.shape[1:])
        chosen = logits if logits.shape[1] == 1 else logits.gather(1, labels)
        return (chosen * (labels > 0)).flatten(1).sum(dim=1)

    def item(self, index: int) -> Foreground:
        return Foreground(item_of(self.labels, index))


def foreground_sum(logits: Logits) -> Foreground:
    """What is segmented, all classes at once.

    Args:
        logits: of the unperturbed image, ``(B, K, *spatial)``.

    Raises:
        ValueError: when an item has no foreground.
    """
    return Foreground(segmentation(logits).detach())
