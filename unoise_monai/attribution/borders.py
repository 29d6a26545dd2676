"""Borders: the voxels that define a segment, as targets."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from unoise_monai.attribution.targets import Region, class_logits
from unoise_monai.networks.outputs import segmentation
from unoise_monai.types import LabelMap, Logits, VoxelMap


def border_mean(logits: Logits, label: int) -> Region:
    """The mean of a class's logit over its border: its voxels with a face-neighbour that is background.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images": a border defines its segment.
    They take the mean of the maps of its voxels, which for most methods is the map of this mean; for the others, and
    for the mean of magnitudes, `VoxelwiseMean` takes it.

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
