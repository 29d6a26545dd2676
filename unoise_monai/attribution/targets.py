"""Targets: what of a segmentation is explained, as one scalar an item.

Functions that take ``logits`` make a target from those of the unperturbed image, ``(B, K, *spatial)``. They raise a
ValueError when an item has no such voxel, or the network no such class.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from monai.metrics import compute_dice
from torch import Tensor
from torch.nn import functional as F

from unoise_monai.networks.weights import probabilities, segmentation
from unoise_monai.types import LabelMap, Logits, VoxelMap


def check_items(target: object, items: int) -> None:
    """Refuse a target with a volume of neither one item nor as many as the image, with a ValueError."""
    for volume in _volumes(target):
        if len(volume) not in (1, items):
            raise ValueError(f"target must be of one item or of the image's {items}, got one of {len(volume)}")


def item_of(volume: Tensor, index: int) -> Tensor:
    """One item of a volume that has one for each item, or one for all: a copy, which gradients may enter."""
    return (volume if len(volume) == 1 else volume[index : index + 1]).clone()


def check_voxels(name: str, region: Tensor) -> None:
    """Refuse a region without a voxel in one of its items."""
    empty = (~region.flatten(1).any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(f"{name} must hold at least one voxel of every item, got none of item {int(empty[0])}")


def check_grid(name: str, volume: Tensor, logits: Logits) -> None:
    """Refuse a volume that is not one channel on the logits' grid, one for each item or one for all."""
    if volume.shape[1:] != (1, *logits.shape[2:]) or volume.shape[0] not in (1, logits.shape[0]):
        raise ValueError(f"{name} must lie on the grid of the logits {tuple(logits.shape)}, got {tuple(volume.shape)}")


def _volumes(target: object) -> Iterator[Tensor]:
    """The volumes ``(B, 1, *spatial)`` of a target of items and of the targets within it."""
    if isinstance(target, Tensor) and target.ndim >= 4:
        yield target
    elif is_dataclass(target) and hasattr(target, "item"):
        for value in vars(target).values():
            yield from _volumes(value)


Target: TypeAlias = Callable[[Logits], Tensor]
T = TypeVar("T")


def of_item(target: Target, index: int) -> Target:
    """The target of one item of a batch: its ``item(index)`` where it has one, else itself."""
    item: Any = getattr(target, "item", None)
    return target if item is None else item(index)


def class_logits(logits: Logits, label: int) -> Tensor:
    """The logit of a class, ``(B, 1, *spatial)``; with one channel, class 0 has minus that of class 1."""
    classes = max(logits.shape[1], 2)
    if not 0 <= label < classes:
        raise ValueError(f"label must be a class of the network, 0 to {classes - 1}, got {label}")
    if logits.shape[1] == 1:
        return logits if label == 1 else -logits
    return logits[:, label : label + 1]


@dataclass(frozen=True)
class ItemTarget:
    """A target that holds other targets, or volumes for each item or one for all: masks or class indices ``labels``.

    Volumes are ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``. In the call, one on another grid than the logits, or of
    another number of items, is refused with a ValueError.
    """

    def item(self: T, index: int) -> T:
        """The target of one item of the batch."""

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return item_of(value, index)
            return of_item(value, index) if callable(value) else value

        return replace(self, **{name: part(value) for name, value in vars(self).items()})  # type: ignore[type-var]


@dataclass(frozen=True)
class Region(ItemTarget):
    """The sum, or the ``mean``, of a class's logit over a region such as the false positives.

    A ValueError where the region of an item is empty.
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


def class_sum(logits: Logits, label: int) -> Region:
    """The sum of a class's logit over the voxels that are segmented as that class.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021.
    """
    class_logits(logits, label)
    return Region((segmentation(logits) == label).detach(), label, mean=False)


def voxel(index: Sequence[int], label: int, size: Sequence[int]) -> Region:
    """The logit of a class in a single voxel of a volume of ``size``; a ValueError where it lies outside."""
    if len(index) != len(size) or not all(0 <= at < side for at, side in zip(index, size, strict=True)):
        raise ValueError(f"index must lie inside {tuple(size)}, got {tuple(index)}")
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[(0, 0, *index)] = True
    return Region(mask, label)


@dataclass(frozen=True)
class SoftDice(ItemTarget):
    """Dice of the predicted probability of a class against labels; a ValueError for a class below 1."""

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


@dataclass(frozen=True)
class Difference(ItemTarget):
    """What speaks for one target and against another, such as tumour against organ."""

    first: Target
    second: Target

    def __call__(self, logits: Logits) -> Tensor:
        return self.first(logits) - self.second(logits)


@dataclass(frozen=True)
class Foreground(ItemTarget):
    """The sum of every foreground voxel's logit of the class that it is segmented as: all classes at once.

    A ValueError where an item has no foreground.
    """

    labels: LabelMap

    def __post_init__(self) -> None:
        check_voxels("the region", self.labels > 0)

    def __call__(self, logits: Logits) -> Tensor:
        check_grid("segmentation", self.labels, logits)
        labels = self.labels.to(logits.device, torch.long).expand(len(logits), *self.labels.shape[1:])
        chosen = logits if logits.shape[1] == 1 else logits.gather(1, labels)
        return (chosen * (labels > 0)).flatten(1).sum(dim=1)


def foreground_sum(logits: Logits) -> Foreground:
    """What is segmented, all classes at once."""
    return Foreground(segmentation(logits).detach())


def border_mean(logits: Logits, label: int) -> Region:
    """The mean of a class's logit over its border: its voxels with a face-neighbour that is background.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images". They take the mean of the
    maps of its voxels, which for methods that are linear in the target is the map of this mean; else `VoxelwiseMean`
    takes it. A ValueError for the label 0, the background.
    """
    if label == 0:
        raise ValueError("label must be above 0, the background has no border with itself, got 0")
    class_logits(logits, label)
    return Region(border(segmentation(logits).detach(), label), label)


def border(labels: LabelMap, label: int) -> VoxelMap:
    """Voxels of a class that have a face-neighbour (4 in 2D, 6 in 3D) of class 0, ``(B, 1, *spatial)``, bool."""
    background = F.pad((labels == 0), [1, 1] * (labels.ndim - 2))
    inner: Any = (..., *[slice(1, -1)] * (labels.ndim - 2))
    neighbours = [background.roll(step, axis)[inner] for axis in range(2, labels.ndim) for step in (-1, 1)]
    return torch.stack(neighbours).any(dim=0) & (labels == label)


@dataclass(frozen=True)
class ClassProbability:
    """The mean predicted probability of a class over the voxels of one item that were given to it.

    ``mask``, bool, says which voxels, and ``labels`` the class of each, ``(1, 1, *spatial)``. Called with the logits
    ``(1, K, *spatial)`` of a perturbed image, it gives a number in [0, 1]. A ValueError where there is no such voxel.
    """

    mask: VoxelMap
    labels: LabelMap

    def __post_init__(self) -> None:
        if not self.mask.any():
            raise ValueError("the unperturbed image must give the class at least one voxel, got none")

    @classmethod
    def of(cls, target: Target, logits: Logits) -> "ClassProbability":
        """What a target asks about, judged by the logits of the unperturbed image.

        A `Region` asks about its class in its voxels; another target with a ``label`` about that class where it is
        segmented; any other about each foreground voxel's own class.
        """
        labels = segmentation(logits)
        if isinstance(target, Region):
            return cls(target.mask > 0, torch.full_like(labels, target.label))
        label = getattr(target, "label", None)
        return cls(labels > 0 if label is None else labels == label, labels)

    def __call__(self, logits: Logits) -> float:
        shares = probabilities(logits)
        if shares.shape[1] == 1:
            shares = torch.cat([1 - shares, shares], dim=1)
        return float(shares.gather(1, self.labels)[self.mask].mean())


@dataclass(frozen=True)
class HardDice(ItemTarget):
    """Dice of what is segmented as a class against labels. It has no gradient; `SoftDice` has one.

    A ValueError where an item has no voxel of the class.
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


def unperturbed_dice(logits: Logits, label: int) -> HardDice:
    """Dice against the segmentation of the unperturbed image: 1 as long as nothing changes.

    Koker et al., "U-Noise", 2021, section 4.2, report it for occlusions.
    """
    class_logits(logits, label)
    return HardDice(segmentation(logits).detach(), label)
