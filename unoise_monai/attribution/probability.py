"""How sure a network is of what it has segmented."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unoise_monai.attribution.targets import Region, Target
from unoise_monai.networks.outputs import probabilities, segmentation
from unoise_monai.types import LabelMap, Logits, VoxelMap


@dataclass(frozen=True)
class ClassProbability:
    """The mean predicted probability of a class over the voxels of one item that were given to it.

    Args:
        mask: the voxels, ``(1, 1, *spatial)``, bool.
        labels: the class of each, ``(1, 1, *spatial)``.

    Shape:
        logits ``(1, K, *spatial)`` of a perturbed image, to a number in [0, 1].

    Raises:
        ValueError: when there is no such voxel.
    """

    mask: VoxelMap
    labels: LabelMap

    def __post_init__(self) -> None:
        if not bool(self.mask.any()):
            raise ValueError("the unperturbed image must give the class at least one voxel, got none")

    @classmethod
    def of(cls, target: Target, logits: Logits) -> ClassProbability:
        """What a target asks about, judged by the logits of the unperturbed image.

        Of a `Region`, its class in its voxels; of another target with a ``label``, that class where it is segmented; of
        any other, each foreground voxel's own class.
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
