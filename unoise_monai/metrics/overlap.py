"""Dice, IoU, surface distance, and how far two maps agree.

The measures take ``logits`` ``(B, K, *spatial)`` and ``label``, class indices ``(B, 1, *spatial)``, and give
``(B, max(K - 1, 1))``: one number an item and foreground class, NaN where the label has none of the class.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance
from monai.metrics.regression import SSIMMetric
from monai.networks.utils import one_hot
from monai.transforms.utils import rescale_array
from scipy.stats import spearmanr
from torch import Tensor

from unoise_monai.checks import check_choice
from unoise_monai.networks.weights import probabilities, segmentation
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap


def dice_per_class(segmentation: Any, label: Any, classes: int) -> list[float]:
    """Dice of every foreground class, ``2 |A and B| / (|A| + |B|)``; NaN where the label has none of it.

    Args:
        segmentation: class indices, an array or tensor of any shape.
        label: likewise.
        classes: how many, the background among them.

    Raises:
        ValueError: when the two are not of one shape, or hold another class.
    """
    found, wanted = (
        each.as_subclass(Tensor).long() if isinstance(each, Tensor) else torch.from_numpy(np.array(each, np.int64))
        for each in (segmentation, label)
    )
    if found.shape != wanted.shape:
        shapes = f"{tuple(found.shape)} and {tuple(wanted.shape)}"
        raise ValueError(f"segmentation and label must have one shape, got {shapes}")
    counts = [torch.bincount(volume.flatten(), minlength=classes) for volume in (found, wanted)]
    for name, count in zip(("segmentation", "label"), counts, strict=True):
        if len(count) > classes:
            raise ValueError(f"{name} must hold classes below {classes}, got {len(count) - 1}")
    both = torch.bincount(wanted[wanted == found], minlength=classes)
    dice = 2 * both.double() / (counts[0] + counts[1])
    return torch.where(counts[1] > 0, dice, torch.nan)[1:].tolist()


def foreground_dice(logits: Logits, label: LabelMap) -> Tensor:
    """Hard Dice, ``(B, max(K - 1, 1))``."""
    classes = max(logits.shape[1], 2)
    scores = [dice_per_class(*pair, classes) for pair in zip(segmentation(logits), label, strict=True)]
    return torch.tensor(scores, device=logits.device)


def segmentation_pair(logits: Logits, label: LabelMap) -> tuple[Tensor, Tensor]:
    """One-hot prediction and label, as MONAI's metric handlers take them, ``(B, max(K, 2), *spatial)`` each."""
    classes = max(logits.shape[1], 2)
    return one_hot(segmentation(logits), num_classes=classes), one_hot(label.long(), num_classes=classes)


def soft_dice(logits: Logits, label: LabelMap) -> Tensor:
    """Dice of the predicted probability, ``2 sum(p y) / (sum p + sum y)``, ``(B, max(K - 1, 1))``."""
    predicted = probabilities(logits.as_subclass(Tensor)).flatten(2)
    truth = one_hot(label.as_subclass(Tensor).long(), num_classes=max(logits.shape[1], 2))[:, 1:].flatten(2)
    predicted = predicted if predicted.shape[1] == 1 else predicted[:, 1:]
    voxels = truth.sum(dim=2)
    dice = 2 * (predicted * truth).sum(dim=2) / (predicted.sum(dim=2) + voxels)
    return torch.where(voxels > 0, dice, torch.nan)


def foreground_iou(logits: Logits, label: LabelMap) -> Tensor:
    """Intersection over union, ``Dice / (2 - Dice)``, ``(B, max(K - 1, 1))``."""
    dice = foreground_dice(logits, label)
    return dice / (2 - dice)


def surface_distance(logits: Logits, label: LabelMap, spacing_mm: Sequence[float]) -> Tensor:
    """Average symmetric surface distance in mm, ``(B, max(K - 1, 1))``: the lower the better.

    The mean over the border voxels of both of the distance to the other's border. A class that the prediction lacks is
    as far off as the volume's diagonal, edge to edge, more than any two voxels are apart.

    Raises:
        ValueError: when ``spacing_mm`` is not one finite number above 0 an axis.
    """
    check_spacing(spacing_mm, logits.ndim - 2)
    spacing = [float(size) for size in spacing_mm]
    pair = segmentation_pair(logits.as_subclass(Tensor), label.as_subclass(Tensor))
    predicted, truth = (volume[:, 1:] for volume in pair)
    diagonal_mm = math.hypot(*(side * size for side, size in zip(logits.shape[2:], spacing, strict=True)))
    options: dict[str, Any] = {"include_background": True, "symmetric": True, "spacing": spacing}
    result = torch.full(predicted.shape[:2], torch.nan, device=logits.device)
    for item, column in itertools.product(*map(range, result.shape)):
        found, wanted = predicted[item, column][None, None], truth[item, column][None, None]
        if bool(wanted.any()):
            result[item, column] = (
                compute_average_surface_distance(found, wanted, **options).squeeze() if found.any() else diagonal_mm
            )
    return result


@dataclass(frozen=True)
class Measure:
    """A measure, and how to read it; called with logits, label and ``spacing_mm``, it gives ``(B, classes)``."""

    score: Callable[..., Tensor]
    higher_is_better: bool = True
    needs_spacing: bool = False

    def __call__(self, logits: Logits, label: LabelMap, spacing_mm: Sequence[float] | None = None) -> Tensor:
        return self.score(logits, label, spacing_mm) if self.needs_spacing else self.score(logits, label)


MEASURES = {
    "dice": Measure(foreground_dice),
    "soft_dice": Measure(soft_dice),
    "iou": Measure(foreground_iou),
    "surface_distance": Measure(surface_distance, higher_is_better=False, needs_spacing=True),
}


def check_measures(measures: Sequence[str], spacing_mm: Sequence[float] | None, axes: int | None = None) -> None:
    """Refuse measures that are unknown, or that need the spacing where it is not given.

    Raises:
        ValueError: when there is no measure, one is not of `MEASURES`, or one needs ``spacing_mm`` and it is None or
            not one finite number above 0 for each of ``axes``.
    """
    if isinstance(measures, str) or not measures:
        raise ValueError(f"measures must be a sequence of at least one name, got {measures!r}")
    for name in measures:
        check_choice("measure", name, tuple(MEASURES))
        if MEASURES[name].needs_spacing and spacing_mm is None:
            raise ValueError(f"spacing_mm must be given for measure {name!r}, got None")
    if spacing_mm is not None:
        check_spacing(spacing_mm, axes)


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not finite and above 0, with a ValueError."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_spacing(spacing_mm: Sequence[float], axes: int | None = None) -> None:
    """Refuse voxel sizes that are not ``axes`` finite numbers above 0, with a ValueError."""
    if not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be finite numbers above 0, got {tuple(spacing_mm)}")
    if axes is not None and len(spacing_mm) != axes:
        raise ValueError(f"spacing_mm must have one number for each of {axes} axes, got {tuple(spacing_mm)}")


def check_grid(name: str, volume: Tensor, image: Image) -> None:
    """Refuse a volume that is not one channel on the image's grid, ``(B, 1, *spatial)``, with a ValueError."""
    expected = (len(image), 1, *image.shape[2:])
    if tuple(volume.shape) != expected:
        raise ValueError(f"{name} must be one channel on the image's grid, {expected}, got {tuple(volume.shape)}")


WINDOW = 11
"""Voxels a side of the Gaussian window of `structural_similarity`, as MONAI and Wang et al. have it."""


def rank_correlation(first: VoxelMap, second: VoxelMap, where: VoxelMap | None = None) -> Tensor:
    """Spearman's rank correlation of two maps, equal values sharing their mean rank, ``(B,)`` in [-1, 1], float64.

    Of a map without contrast it is undefined: taken as 1 where neither map has any, as 0 where one has.

    Args:
        first: ``(B, 1, *spatial)``.
        second: ``(B, 1, *spatial)``.
        where: the voxels that count, bool ``(B, 1, *spatial)``; None for all.
    """
    counts = torch.ones_like(first, dtype=torch.bool) if where is None else where
    scores = []
    for one, other, counted in zip(first, second, counts, strict=True):
        pair = [volume[counted].detach().double().cpu().numpy() for volume in (one, other)]
        flat = [bool((values == values[:1]).all()) for values in pair]
        scores.append(float(all(flat)) if any(flat) else float(spearmanr(*pair).statistic))
    return torch.tensor(scores, dtype=torch.float64, device=first.device)


def structural_similarity(first: VoxelMap, second: VoxelMap) -> Tensor:
    """SSIM of two maps, each scaled to [0, 1] within its item (one without contrast to 0), by MONAI, ``(B,)``.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004. It is the mean over
    the windows that lie inside; where a side is shorter than `WINDOW`, the window is the longest odd one that fits.
    """
    window = [min(WINDOW, side - 1 + side % 2) for side in first.shape[2:]]
    metric = SSIMMetric(first.ndim - 2, data_range=1.0, win_size=window, reduction="none")
    scaled = [torch.stack([rescale_array(item, 0.0, 1.0, dtype=None) for item in maps]) for maps in (second, first)]
    return metric(*scaled).flatten().double()
