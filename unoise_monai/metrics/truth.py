"""Where a map's importance lies on a phantom, whose right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.checks import check_finite, check_fraction
from unoise_monai.data.phantoms import Truth
from unoise_monai.types import LabelMap, VoxelMap

DECIDING = (Truth.TARGET, Truth.LANDMARK)
"""What tells the target: itself, and the landmarks beside it."""


class TruthScores(NamedTuple):
    """What `truth_scores` says of each item, float64."""

    tissues: tuple[int, ...]
    """Of the T columns."""
    average_precision: Tensor
    """Area under precision against recall for the deciding voxels, ``(B,)``; NaN where there is none."""
    prevalence: Tensor
    """Share of the deciding voxels, ``(B,)``: the average precision of a map that is the same everywhere."""
    top: Tensor
    """Part of the top voxels that lies on each tissue, ``(B, T)``; a row adds up to 1, and is NaN of an empty top."""
    rank: Tensor
    """Mean rank of each tissue's voxels, 0 the least important and 1 the most, ``(B, T)``; NaN where there is none."""


def truth_scores(
    importance: VoxelMap,
    truth: LabelMap,
    share: float | None = None,
    deciding: Sequence[int] = DECIDING,
    tissues: Sequence[int] = tuple(Truth),
) -> TruthScores:
    """Compare a map with what every voxel is known to mean.

    Only the order of the values counts, so that maps of any scale compare; large is important, whatever the sign.
    Equal values share what they get: the cut through the top voxels takes the same part of each voxel at its level, the
    average precision has one step for them, and their ranks are their mean. A map that is the same everywhere thus has
    every tissue's share of the volume in its top, rank 0.5, and the prevalence as its average precision.

    Args:
        importance: ``(B, 1, *spatial)``.
        truth: what each voxel is, ``(B, 1, *spatial)``, of the values ``tissues``.
        share: of the volume that counts as its top; None for as many voxels as are deciding in the item.
        deciding: the tissues that should matter.
        tissues: all values that ``truth`` may hold; by default those of `Truth`.

    Raises:
        ValueError: when the two are not one channel on one grid, or ``importance`` holds NaN or infinite values.
        ValueError: when ``truth`` holds a value that is not in ``tissues``, or ``deciding`` names one that is not.
        ValueError: when ``share`` is not above 0 and at most 1.
    """
    _check_maps(importance, truth)
    if share is not None:
        check_fraction("share", share)
    if not deciding or not set(deciding) <= set(tissues):
        raise ValueError(f"deciding must be some of the tissues {_plain(tissues)}, got {_plain(deciding)}")
    columns = [index for index, tissue in enumerate(tissues) if tissue in deciding]
    precisions, prevalences, tops, ranks = [], [], [], []
    for values, meaning in zip(_flat(importance), _flat(truth), strict=True):
        steps = _steps(values, _column_of(meaning, tissues), len(tissues))
        wanted = steps[:, columns].sum(dim=1)
        count = float(wanted.sum()) if share is None else max(1, round(share * len(values)))
        precisions.append(_average_precision(wanted, steps.sum(dim=1)))
        prevalences.append(wanted.sum() / len(values))
        tops.append(_top(steps, count))
        ranks.append(_mean_ranks(steps))
    return TruthScores(
        _plain(tissues), torch.stack(precisions), torch.stack(prevalences), torch.stack(tops), torch.stack(ranks)
    )


def average_precision(importance: VoxelMap, wanted: VoxelMap) -> Tensor:
    """Area under precision against recall, equal values as one step, ``(B,)``; NaN where no voxel is wanted.

    The sum over thresholds of the recall gained times the precision there, without interpolation.

    Args:
        importance: ``(B, 1, *spatial)``.
        wanted: which voxels should come first, ``(B, 1, *spatial)``, bool.

    Raises:
        ValueError: when the two are not one channel on one grid, or ``importance`` holds NaN or infinite values.
    """
    _check_maps(importance, wanted)
    steps = [
        _steps(values, found.long(), 2) for values, found in zip(_flat(importance), _flat(wanted != 0), strict=True)
    ]
    return torch.stack([_average_precision(item[:, 1], item.sum(dim=1)) for item in steps])


def _steps(values: Tensor, column: Tensor, tissues: int) -> Tensor:
    """How many voxels of each tissue there are at each value, the most important first, ``(steps, tissues)``."""
    levels, step = torch.unique(values, return_inverse=True)
    counts = torch.bincount(step * tissues + column, minlength=len(levels) * tissues)
    return counts.view(len(levels), tissues).flip(0).double()


def _average_precision(wanted: Tensor, voxels: Tensor) -> Tensor:
    precision = wanted.cumsum(dim=0) / voxels.cumsum(dim=0)
    return (precision * wanted).sum() / wanted.sum()


def _top(steps: Tensor, count: float) -> Tensor:
    voxels = steps.sum(dim=1)
    before = voxels.cumsum(dim=0) - voxels
    taken = ((count - before) / voxels).clamp(0, 1)
    return (steps * taken[:, None]).sum(dim=0) / count


def _mean_ranks(steps: Tensor) -> Tensor:
    voxels = steps.sum(dim=1)
    above = (voxels.cumsum(dim=0) - voxels / 2) / voxels.sum()
    return (steps * (1 - above)[:, None]).sum(dim=0) / steps.sum(dim=0)


def _column_of(truth: Tensor, tissues: Sequence[int]) -> Tensor:
    column = torch.full_like(truth, -1, dtype=torch.long)
    for index, tissue in enumerate(tissues):
        column[truth == tissue] = index
    if bool((column < 0).any()):
        raise ValueError(f"truth must hold the values {_plain(tissues)} only, got {truth[column < 0][0].item()}")
    return column


def _check_maps(importance: Tensor, truth: Tensor) -> None:
    if importance.ndim < 3 or importance.shape[1] != 1 or truth.shape != importance.shape:
        raise ValueError(
            f"importance and truth must be (B, 1, *spatial) on one grid, got {tuple(importance.shape)} and "
            f"{tuple(truth.shape)}"
        )
    check_finite(importance, "importance")


def _flat(volume: Tensor) -> Tensor:
    return (volume.as_tensor() if isinstance(volume, MetaTensor) else volume).detach().flatten(1)


def _plain(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
