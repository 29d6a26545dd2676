"""Importance and tolerance within regions, and importance against the truth of a phantom."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.checks import check_choice, check_finite, check_fraction
from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean, bounds, resampled_sums
from unoise_monai.metrics.overlap import check_spacing
from unoise_monai.phantoms.abdomen import Truth
from unoise_monai.types import LabelMap, VoxelMap

SUFFIXES = ("", "_foreground", "_background")
"""Of the metric's name, for the mean over all voxels, those with a label above 0, and the others."""


class MeanTolerance(Metric):
    """Means of the tolerance map ``B``, as an ignite metric: three of one pass over the voxels.

    A noise model that has learned something tolerates less on the foreground than on the background. NaN where no voxel
    of a region was seen: an empty foreground is no reason to stop. Over the voxels that all ranks saw.

    Attached as ``tolerance``, it gives an engine the metrics ``tolerance``, ``tolerance_foreground`` and
    ``tolerance_background``; `compute` gives the three in that order.

    Args:
        output_transform: from the engine's output to the pair ``(tolerance, label)``, each ``(B, 1, *spatial)``.
        device: where the sums are kept.

    Raises:
        NotComputableError: on ``compute`` before any volume was seen.
    """

    def __init__(self, output_transform: Callable = lambda x: x, device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._sums = torch.zeros(len(SUFFIXES), dtype=torch.float64, device=self._device)
        self._counts = torch.zeros(len(SUFFIXES), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        tolerance, label = output[0].detach(), output[1]
        regions = (tolerance, tolerance[label > 0], tolerance[label == 0])
        for index, values in enumerate(regions):
            self._sums[index] += values.sum(dtype=torch.float64).to(self._device)
            self._counts[index] += values.numel()

    @sync_all_reduce("_sums", "_counts")
    def compute(self) -> Any:
        if self._counts[0] == 0:
            raise NotComputableError("MeanTolerance needs at least one volume, got none")
        return tuple((self._sums / self._counts).tolist())

    def completed(self, engine: Engine, name: str) -> None:
        """One scalar a region, so that tables, logs and TensorBoard take each as any other metric."""
        for suffix, mean in zip(SUFFIXES, self.compute(), strict=True):
            engine.state.metrics[f"{name}{suffix}"] = mean


ELSEWHERE = "elsewhere"
ORDERS = ("ratio", "importance_share")


@dataclass(frozen=True)
class RegionRow:
    """What one region holds, in one case or on average over cases."""

    name: str
    volume_share: float
    """Share of the voxels."""
    volume_ml: float
    """NaN where the spacing is not known, and in 2D."""
    importance_share: Interval
    """Share of the case's importance."""
    ratio: Interval
    """Share of the importance over share of the volume: 1 where the region matters as much as any other place."""
    density: Interval
    """Mean importance a voxel."""
    density_per_ml: Interval
    """Importance a millilitre; NaN where the spacing is not known, and in 2D."""


def region_importance(
    importance: VoxelMap,
    labels: LabelMap,
    names: Mapping[int, str] | Mapping[str, str],
    spacing_mm: Sequence[float] | None = None,
    block: int = 8,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    order: str = "ratio",
) -> list[RegionRow]:
    """The importance of each region of one case, the region that matters most first.

    Voxels of labels that ``names`` doesn't list are a region too, "elsewhere"; labels of one name are one region. A
    region without a voxel has no row. Of a map that is 0 everywhere, shares and ratios are NaN.

    The intervals are a block bootstrap (Künsch, "The jackknife and the bootstrap for general stationary observations",
    1989; here of disjoint blocks): neighbouring voxels are alike, so whole cubes of ``block`` voxels a side are drawn.
    They show how much a result depends on single places of *this* map, not how it varies over patients. They are too
    narrow where the map is smooth over more than a block, and of a region in few blocks (``count`` is the number it
    touches; with a single one the bounds are NaN).

    Args:
        importance: ``(1, 1, *spatial)``, at least 0, such as the magnitude or the positive part of signed values.
        labels: whole numbers, ``(1, 1, *spatial)``.
        names: of the labels; their keys may be text, as JSON has them.
        spacing_mm: voxel sizes, for volumes in ml, which only three axes have.
        block: side of the blocks, in voxels.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the draws.
        order: by what the rows are sorted, ``"ratio"`` or ``"importance_share"``, NaN last.

    Raises:
        ValueError: when the two are not one item of one channel on one grid, ``importance`` holds a negative, NaN or
            infinite value, or ``labels``, or the keys of ``names``, are not whole numbers.
        ValueError: when ``spacing_mm`` is not one positive number an axis, ``block`` below 1, ``order`` unknown, or
            ``level`` or ``draws`` are refused as in `bootstrap_mean`.
    """
    check_choice("order", order, ORDERS)
    importance, labels = _checked("labels", importance, labels, one_item=True)
    if bool((importance < 0).any()):
        least = float(importance.min())
        raise ValueError(f"importance must be at least 0, got {least}: take its magnitude or its positive part")
    if labels.is_floating_point() and bool((broken := labels != labels.round()).any()):
        raise ValueError(f"labels must be whole numbers, got {float(labels[broken][0])}")
    axes = importance.ndim - 2
    if spacing_mm is not None:
        check_spacing(spacing_mm, axes)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    voxel_ml = math.nan if spacing_mm is None or axes != 3 else math.prod(spacing_mm) / 1000

    regions = list(dict.fromkeys([ELSEWHERE, *names.values()]))
    named = {int(label): regions.index(name) for label, name in names.items()}
    present, inverse = np.unique(labels[0, 0].cpu().numpy(), return_inverse=True)
    index = np.array([named.get(int(label), 0) for label in present])
    region = index[inverse].reshape(labels.shape[2:])
    sums, voxels = _block_sums(importance[0, 0].double().cpu().numpy(), region, len(regions), block)
    touched = (voxels > 0).sum(axis=0)
    case = _fractions(sums.sum(axis=0), voxels.sum(axis=0))
    drawn = _fractions(*np.split(resampled_sums(np.concatenate([sums, voxels], axis=1), draws, seed), 2, axis=1))
    rows = []
    for k in np.flatnonzero(touched):
        found = []
        for (over, under), (overs, unders) in zip(case, drawn, strict=True):
            mean = float(over[k]) / float(under[k]) if under[k] else math.nan
            low, high = bounds(overs[:, k], unders[:, k], level)
            if touched[k] < 2:
                low = high = math.nan
            found.append(Interval(mean, low, high, int(touched[k])))
        share, ratio, density = found
        room = int(voxels[:, k].sum())
        per_ml = Interval(density.mean / voxel_ml, density.low / voxel_ml, density.high / voxel_ml, density.count)
        rows.append(RegionRow(regions[k], room / labels.numel(), room * voxel_ml, share, ratio, density, per_ml))
    return sorted_rows(rows, order)


def sorted_rows(rows: Sequence[RegionRow], order: str) -> list[RegionRow]:
    """The largest ratio or share of the importance first, NaN last."""

    def key(row: RegionRow) -> float:
        value = getattr(row, order).mean
        return math.inf if math.isnan(value) else -value

    return sorted(rows, key=key)


def _block_sums(importance: NDArray, region: NDArray, regions: int, block: int) -> tuple[NDArray, NDArray]:
    """Importance and voxels of every region in every block of voxels, ``(blocks, regions)`` each."""
    places = [np.arange(side) // block for side in importance.shape]
    size = (*(int(place[-1]) + 1 for place in places), regions)
    cell = np.ravel_multi_index((*np.ix_(*places), region), size).ravel()
    sums = np.bincount(cell, importance.ravel(), minlength=math.prod(size))
    voxels = np.bincount(cell, minlength=math.prod(size)).astype(np.float64)
    return sums.reshape(-1, regions), voxels.reshape(-1, regions)


def _fractions(sums: NDArray, voxels: NDArray) -> list[tuple[NDArray, NDArray]]:
    """Numerator and denominator of the share of importance, of its ratio to the volume's, and of the density."""
    total, room = (np.broadcast_to(part.sum(axis=-1, keepdims=True), part.shape) for part in (sums, voxels))
    return [(sums, total), (sums * room, voxels * total), (sums, voxels)]


def _checked(name: str, importance: Tensor, other: Tensor, one_item: bool = False) -> tuple[Tensor, Tensor]:
    """Plain tensors; a ValueError when the two are not one channel on one grid, or the importance is not finite."""
    shape = importance.shape
    if importance.ndim < 3 or shape[1] != 1 or other.shape != shape or (one_item and len(importance) != 1):
        kind = "one item (1, 1, *spatial)" if one_item else "(B, 1, *spatial)"
        got = f"{tuple(shape)} and {tuple(other.shape)}"
        raise ValueError(f"importance and {name} must be {kind} on one grid, got {got}")
    check_finite(importance, "importance")
    return importance.detach().as_subclass(Tensor), other.detach().as_subclass(Tensor)


def regions_over_cases(
    cases: Sequence[Sequence[RegionRow]],
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    order: str = "ratio",
) -> list[RegionRow]:
    """The mean over cases of each region's results, with intervals over cases, the region that matters most first.

    A case without the region, or whose map is 0 everywhere, is left out of that region's means and counted as missing.
    Densities average only where all maps are on one scale, as those of a noise model are.

    Args:
        cases: the rows of `region_importance`, of each case.
        groups: the patient of each case, as in `bootstrap_mean`, like ``level``, ``draws`` and ``seed``.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the draws.
        order: by what the rows are sorted, ``"ratio"`` or ``"importance_share"``, NaN last.

    Raises:
        ValueError: when there is no case, or ``order`` is unknown, or as `bootstrap_mean` does.
    """
    check_choice("order", order, ORDERS)
    if not cases:
        raise ValueError("cases must be at least one, got none")
    tables = [{row.name: row for row in rows} for rows in cases]
    result = []
    for name in dict.fromkeys(name for table in tables for name in table):
        there = [table[name] for table in tables if name in table]
        means = {
            part: bootstrap_mean(
                [getattr(table[name], part).mean if name in table else math.nan for table in tables],
                level,
                draws,
                seed,
                groups,
            )
            for part in ("importance_share", "ratio", "density", "density_per_ml")
        }
        share, volume_ml = np.mean([(row.volume_share, row.volume_ml) for row in there], axis=0).tolist()
        result.append(RegionRow(name, share, volume_ml, **means))
    return sorted_rows(result, order)


DECIDING = (Truth.TARGET, Truth.LANDMARK)
"""What a network recognises the target by: itself, and the landmarks beside it."""


class TruthScores(NamedTuple):
    """The results of `truth_scores` for each item, float64."""

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

    Only the order of the values counts; large is important, whatever the sign. Equal values share what they get: the
    cut through the top voxels takes the same part of each voxel at its level, the average precision has one step for
    them, and their ranks are their mean. A map that is the same everywhere thus has every tissue's share of the volume
    in its top, rank 0.5, and the prevalence as its average precision.

    Args:
        importance: ``(B, 1, *spatial)``.
        truth: what each voxel is, ``(B, 1, *spatial)``, of the values ``tissues``.
        share: of the volume that counts as its top; None for as many voxels as are deciding in the item.
        deciding: the tissues that should matter.
        tissues: all values that ``truth`` may hold; by default those of `Truth`.

    Raises:
        ValueError: when the two are not one channel on one grid, ``importance`` holds NaN or infinite values, ``truth``
            or ``deciding`` a value that is not in ``tissues``, or ``share`` is not above 0 and at most 1.
    """
    importance, truth = _checked("truth", importance, truth)
    if share is not None:
        check_fraction("share", share)
    if not deciding or not set(deciding) <= set(tissues):
        plain = tuple(map(int, tissues)), tuple(map(int, deciding))
        raise ValueError(f"deciding must be some of the tissues {plain[0]}, got {plain[1]}")
    columns = [index for index, tissue in enumerate(tissues) if tissue in deciding]
    items = []
    for values, meaning in zip(importance.flatten(1), truth.flatten(1), strict=True):
        steps = _steps(values, _column_of(meaning, tissues), len(tissues))
        wanted, voxels = steps[:, columns].sum(dim=1), steps.sum(dim=1)
        above = voxels.cumsum(dim=0) - voxels
        count = float(wanted.sum()) if share is None else max(1, round(share * len(values)))
        top = ((count - above) / voxels).clamp(0, 1) @ steps / count
        rank = (1 - (above + voxels / 2) / len(values)) @ steps / steps.sum(dim=0)
        items.append((_average_precision(wanted, voxels), wanted.sum() / len(values), top, rank))
    return TruthScores(tuple(map(int, tissues)), *map(torch.stack, zip(*items, strict=True)))


def average_precision(importance: VoxelMap, wanted: VoxelMap) -> Tensor:
    """Area under precision against recall, equal values as one step, ``(B,)``; NaN where no voxel is wanted.

    The sum over thresholds of the recall gained times the precision there, without interpolation.

    Args:
        importance: ``(B, 1, *spatial)``.
        wanted: which voxels should come first, ``(B, 1, *spatial)``, bool.

    Raises:
        ValueError: when the two are not one channel on one grid, or ``importance`` holds NaN or infinite values.
    """
    importance, wanted = _checked("wanted", importance, wanted)
    pairs = zip(importance.flatten(1), (wanted != 0).long().flatten(1), strict=True)
    steps = [_steps(values, found, 2) for values, found in pairs]
    return torch.stack([_average_precision(item[:, 1], item.sum(dim=1)) for item in steps])


def _steps(values: Tensor, column: Tensor, tissues: int) -> Tensor:
    """How many voxels of each tissue there are at each value, the most important first, ``(steps, tissues)``."""
    levels, step = torch.unique(values, return_inverse=True)
    counts = torch.bincount(step * tissues + column, minlength=len(levels) * tissues)
    return counts.view(len(levels), tissues).flip(0).double()


def _average_precision(wanted: Tensor, voxels: Tensor) -> Tensor:
    precision = wanted.cumsum(dim=0) / voxels.cumsum(dim=0)
    return (precision * wanted).sum() / wanted.sum()


def _column_of(truth: Tensor, tissues: Sequence[int]) -> Tensor:
    column = torch.full_like(truth, -1, dtype=torch.long)
    for index, tissue in enumerate(tissues):
        column[truth == tissue] = index
    if bool((column < 0).any()):
        plain = tuple(map(int, tissues))
        raise ValueError(f"truth must hold the values {plain} only, got {truth[column < 0][0].item()}")
    return column
