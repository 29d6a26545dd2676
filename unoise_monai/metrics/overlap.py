"""How well a segmentation matches its label: the measures of an item and class, from logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.metrics import compute_average_surface_distance, compute_iou
from torch import Tensor

from unoise_monai.checks import check_choice
from unoise_monai.metrics.dice import foreground_dice, segmentation_pair
from unoise_monai.networks.outputs import probabilities
from unoise_monai.types import LabelMap, Logits


def soft_dice(logits: Logits, label: LabelMap) -> Tensor:
    """Dice of the predicted probability of every foreground class; NaN where the label has none of it.

    ``2 sum(p y) / (sum p + sum y)``: it tells a doubtful voxel from a sure one, which the hard Dice does not.

    Shape:
        ``logits`` ``(B, K, *spatial)`` and ``label`` class indices ``(B, 1, *spatial)`` to ``(B, max(K - 1, 1))``.
    """
    shares = probabilities(logits.as_subclass(Tensor)).flatten(2)
    predicted = shares if shares.shape[1] == 1 else shares[:, 1:]
    classes = torch.arange(1, predicted.shape[1] + 1, device=logits.device)
    truth = (label.as_subclass(Tensor).flatten(2) == classes.view(1, -1, 1)).to(predicted.dtype)
    voxels = truth.sum(dim=2)
    dice = 2 * (predicted * truth).sum(dim=2) / (predicted.sum(dim=2) + voxels)
    return torch.where(voxels > 0, dice, torch.nan)


def foreground_iou(logits: Logits, label: LabelMap) -> Tensor:
    """Intersection over union of every foreground class; NaN where the label has none of it.

    Shape:
        ``logits`` ``(B, K, *spatial)`` and ``label`` class indices ``(B, 1, *spatial)`` to ``(B, max(K - 1, 1))``.
    """
    pair = segmentation_pair(logits.as_subclass(Tensor), label.as_subclass(Tensor))
    return compute_iou(*pair, include_background=False, ignore_empty=True)


def surface_distance(logits: Logits, label: LabelMap, spacing_mm: Sequence[float]) -> Tensor:
    """Average symmetric surface distance of every foreground class, in mm, the lower the better.

    The mean over the border voxels of both of the distance to the other's border. NaN where the label has none of the
    class. Where the prediction has none there is no distance: it counts as the volume's diagonal, edge to edge, more
    than any two voxels are apart.

    Shape:
        ``logits`` ``(B, K, *spatial)`` and ``label`` class indices ``(B, 1, *spatial)`` to ``(B, max(K - 1, 1))``.

    Raises:
        ValueError: when ``spacing_mm`` is not one finite number above 0 an axis.
    """
    check_spacing(spacing_mm, logits.ndim - 2)
    spacing = [float(size) for size in spacing_mm]
    predicted, truth = segmentation_pair(logits.as_subclass(Tensor), label.as_subclass(Tensor))
    predicted, truth = predicted[:, 1:], truth[:, 1:]
    diagonal_mm = math.hypot(*(side * size for side, size in zip(logits.shape[2:], spacing, strict=True)))
    result = torch.full(predicted.shape[:2], torch.nan, device=logits.device)
    for item, column in itertools.product(*map(range, result.shape)):
        found, wanted = predicted[item, column][None, None], truth[item, column][None, None]
        if not bool(wanted.any()):
            continue
        if bool(found.any()):
            result[item, column] = compute_average_surface_distance(
                found, wanted, include_background=True, symmetric=True, spacing=spacing
            ).squeeze()
        else:
            result[item, column] = diagonal_mm
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
        ValueError: when there is no measure, one is not of `MEASURES`, or one needs ``spacing_mm`` and it is None, or
            as `check_spacing`.
    """
    if isinstance(measures, str) or not measures:
        raise ValueError(f"measures must be a sequence of at least one name, got {measures!r}")
    for name in measures:
        check_choice("measure", name, tuple(MEASURES))
        if MEASURES[name].needs_spacing and spacing_mm is None:
            raise ValueError(f"spacing_mm must be given for measure {name!r}, got None")
    if spacing_mm is not None:
        check_spacing(spacing_mm, axes)


def check_spacing(spacing_mm: Sequence[float], axes: int | None = None) -> None:
    """Refuse voxel sizes that are not finite numbers above 0, one an axis.

    Raises:
        ValueError: when a size is not above 0 and finite, or there are not ``axes`` of them.
    """
    if not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be finite numbers above 0, got {tuple(spacing_mm)}")
    if axes is not None and len(spacing_mm) != axes:
        raise ValueError(f"spacing_mm must have one number for each of {axes} axes, got {tuple(spacing_mm)}")
