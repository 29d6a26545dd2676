"""Rankings of the voxels: by a map, and the two that every map is measured against, chance and the label itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK
import torch
from torch import Tensor

from unoise_monai.checks import check_choice
from unoise_monai.metrics.overlap import check_spacing
from unoise_monai.types import Image, LabelMap, VoxelMap

ORDERS = ("quantile", "threshold")
MODES = ("insertion", "deletion")


def importance_order(importance: VoxelMap) -> VoxelMap:
    """Rank of every voxel within its volume, 0 the most important, ``(B, 1, *spatial)``."""
    flat = importance.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return ranks.view_as(importance)


def top_share(order: VoxelMap, share: float) -> VoxelMap:
    """Which voxels are among the top share of their volume, by the ranks of `importance_order`; bool."""
    return order < round(share * order[0].numel())


def visible_voxels(
    importance: VoxelMap, order: str = "quantile", mode: str = "insertion"
) -> Callable[[float], VoxelMap]:
    """Which voxels stay visible, as a function of the level; bool, ``(B, 1, *spatial)``.

    Args:
        importance: ``(B, 1, *spatial)``.
        order: ``"quantile"``, the level is a share of the voxels, or ``"threshold"``, it is one of the tolerance:
            the top voxels are those with ``1 - importance <= level``.
        mode: the top voxels stay visible (``"insertion"``) or are hidden (``"deletion"``).

    Raises:
        ValueError: when ``order`` or ``mode`` is unknown.
    """
    check_choice("order", order, ORDERS)
    check_choice("mode", mode, MODES)
    ranks = importance_order(importance) if order == "quantile" else None

    def visible(level: float) -> VoxelMap:
        top = importance >= 1 - level if ranks is None else top_share(ranks, level)
        return top if mode == "insertion" else ~top

    return visible


def random_map(image: Image, generator: torch.Generator | None = None) -> VoxelMap:
    """A map that knows nothing, uniform in [0, 1): the floor of a scoreboard.

    Args:
        image: ``(B, C, *spatial)``.
        generator: on any device; the global state of the CPU where None.

    Returns:
        ``(B, 1, *spatial)`` float32, on the image's device.
    """
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand((len(image), 1, *image.shape[2:]), generator=generator, device=device).to(image.device)


def distance_map(label: LabelMap, spacing_mm: Sequence[float]) -> VoxelMap:
    """A map that knows the answer, minus the distance to the foreground: the ceiling of a scoreboard.

    Outside, minus the distance in mm to the nearest foreground voxel; inside, the distance to the nearest one that
    touches the background, so that the middle of a structure comes first. The context that a network needs is not in
    it: a good map may exceed this ceiling.

    Args:
        label: class indices, ``(B, 1, *spatial)``; the foreground is what is above 0.
        spacing_mm: voxel sizes, one an axis.

    Returns:
        ``(B, 1, *spatial)`` float32, on the label's device; 0 everywhere where an item is all foreground or has none.

    Raises:
        ValueError: when ``spacing_mm`` is not one finite number above 0 an axis.
    """
    check_spacing(spacing_mm, label.ndim - 2)
    foreground = (label.as_subclass(Tensor) > 0)[:, 0]
    return torch.stack([_depth(item, spacing_mm) for item in foreground])[:, None].to(label.device)


def _depth(mask: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    if not bool(mask.any()) or bool(mask.all()):
        return torch.zeros(mask.shape)
    # SimpleITK counts the axes from the last.
    volume = SimpleITK.GetImageFromArray(mask.cpu().numpy().astype(np.uint8).T)
    volume.SetSpacing([float(size) for size in spacing_mm])
    distance_mm = SimpleITK.SignedMaurerDistanceMap(volume, False, False, True)
    return torch.from_numpy(-np.ascontiguousarray(SimpleITK.GetArrayFromImage(distance_mm).T))
