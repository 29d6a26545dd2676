"""Attributions to whole features, supervoxels or organs, which are hidden together.

Captum takes features as a mask of the caller's; here they are made of each image, or numbered from any label map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.perturbation import PerturbationAttributor
from unoise_monai.attribution.supervoxels import check_supervoxels, numbered, supervoxels
from unoise_monai.types import Image, LabelMap


@dataclass(frozen=True)
class Features:
    """An image in pieces, each as it is or hidden.

    Args:
        image: one item, ``(1, C, *spatial)``.
        hidden: what its voxels become, of the same shape.
        labels: each voxel's feature, ``(1, 1, *spatial)``, from 0 to below ``count``.
        count: how many features there are.
    """

    image: Image
    hidden: Image
    labels: LabelMap
    count: int

    def keeping(self, kept: Tensor) -> Image:
        """Copies with only some features as they are: ``kept`` bool ``(n, count)`` to ``(n, C, *spatial)``."""
        return torch.where(kept.to(self.labels.device)[:, self.labels[0]], self.image, self.hidden)


class FeatureAttributor(PerturbationAttributor):
    """An attribution that gives every voxel the value of its feature, a supervoxel or a label of the user's own.

    Args:
        network: see `Attributor`.
        labels: the features, ``(1, 1, *spatial)`` for every item, each value one, 0 too; such as organs, or
            `supervoxels` within organs. None for supervoxels of each image.
        size: of supervoxels, voxels a side.
        compactness: of supervoxels, see `supervoxels`.
        per_voxel: spread a feature's value over its voxels, so that they add up to it, in place of giving it to each:
            large features then don't outrank small ones for their size.
        **options: see `PerturbationAttributor`.

    ``notes`` of the map hold the number of ``features``.

    Raises:
        ValueError: when ``labels`` is not one map, or ``size`` or ``compactness`` out of range; in the call, when
            ``labels`` lie on another grid than the image.
    """

    contributes = True

    def __init__(
        self,
        network: nn.Module,
        labels: LabelMap | None = None,
        size: int | Sequence[int] = 16,
        compactness: float = 1.0,
        per_voxel: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        check_supervoxels(size, compactness)
        if labels is not None and tuple(labels.shape[:2]) != (1, 1):
            raise ValueError(f"labels must be one map, (1, 1, *spatial), got {tuple(labels.shape)}")
        self.labels, self.size, self.compactness, self.per_voxel = labels, size, compactness, per_voxel

    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        if self.labels is not None and self.labels.shape[2:] != image.shape[2:]:
            grid, got = tuple(image.shape[2:]), tuple(self.labels.shape[2:])
            raise ValueError(f"labels must lie on the image's grid {grid}, got {got}")
        own = self.labels
        found = supervoxels(image, self.size, self.compactness) if own is None else own.to(image.device)
        labels, count = numbered(found)
        score.notes["features"] = count
        values = self.effects(Features(image, hidden, labels, count), score).to(image.device)
        if self.per_voxel:
            values = values / labels.flatten().bincount(minlength=count)
        return values.to(image.dtype)[labels]

    @abstractmethod
    def effects(self, features: Features, score: Score) -> Tensor:
        """One value a feature, ``(count,)``."""

    def scores(self, features: Features, kept: Tensor, score: Score) -> Tensor:
        """The score with some features kept, one for each row of ``kept`` that the time allows, float64 on the CPU."""
        batches = self.batches(len(kept), score)
        return torch.cat([score(features.keeping(kept[rows.start : rows.stop])).cpu() for rows in batches]).double()
