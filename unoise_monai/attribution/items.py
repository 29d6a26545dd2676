"""The masks and labels of targets: of one item, of as many as an image has, and on its grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass

from torch import Tensor

from unoise_monai.types import Logits


def check_items(target: object, items: int) -> None:
    """Refuse a target that was made from another number of items than an image has; one made from one serves all.

    Raises:
        ValueError: when a mask or label of the target is of neither one item nor so many.
    """
    for volume in _volumes(target):
        if len(volume) not in (1, items):
            raise ValueError(f"target must be of one item or of the image's {items}, got one of {len(volume)}")


def item_of(volume: Tensor, index: int) -> Tensor:
    """One item of a volume that has one for each item, or one for all."""
    # A copy enters gradients also where the volume was made in inference mode.
    return (volume if len(volume) == 1 else volume[index : index + 1]).clone()


def check_voxels(name: str, region: Tensor) -> None:
    """Refuse a region without a voxel in one of its items."""
    voxels = region.flatten(1).any(dim=1)
    if not bool(voxels.all()):
        empty = (~voxels).nonzero().flatten().tolist()
        raise ValueError(f"{name} must hold at least one voxel of every item, got none of item {empty[0]}")


def check_grid(name: str, volume: Tensor, logits: Logits) -> None:
    """Refuse a volume that is not one channel on the logits' grid, one for each item or one for all."""
    if volume.shape[1:] != (1, *logits.shape[2:]) or volume.shape[0] not in (1, logits.shape[0]):
        raise ValueError(f"{name} must lie on the grid of the logits {tuple(logits.shape)}, got {tuple(volume.shape)}")


def _volumes(target: object) -> Iterator[Tensor]:
    """The masks and labels ``(B, 1, *spatial)`` that a target of items holds, also those of targets within it."""
    if is_dataclass(target) and hasattr(target, "item"):
        for value in vars(target).values():
            if isinstance(value, Tensor) and value.ndim >= 4:
                yield value
            else:
                yield from _volumes(value)
