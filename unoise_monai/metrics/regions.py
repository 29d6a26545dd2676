"""How much importance lies in each organ, against how much room it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.checks import check_choice, check_finite
from unoise_monai.metrics.bootstrap import Interval, bounds, resampled_sums
from unoise_monai.metrics.overlap import check_spacing
from unoise_monai.types import LabelMap, VoxelMap

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
    1989; here of disjoint blocks): neighbouring voxels are alike, so whole cubes of ``block`` voxels a side are drawn,
    not voxels. They say how much a figure depends on single places of *this* map, nothing of other patients; they are
    too narrow where the map is smooth over more than a block, and of a region in few blocks (``count`` tells how many
    it touches; of a single one the bounds are NaN).

    Args:
        importance: ``(1, 1, *spatial)``, at least 0: signed values would cancel out, so take what is meant, their
            magnitude or their positive part, before.
        labels: whole numbers, ``(1, 1, *spatial)``.
        names: of the labels; their keys may be text, as JSON has them.
        spacing_mm: voxel sizes, for volumes in ml, which only three axes have.
        block: side of the blocks, in voxels.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the draws.
        order: by what the rows are sorted, ``"ratio"`` or ``"importance_share"``, NaN last.

    Raises:
        ValueError: when the two are not one item of one channel on one grid, or ``labels``, or the keys of
            ``names``, are not whole numbers.
        ValueError: when ``importance`` holds a negative, NaN or infinite value.
        ValueError: when ``spacing_mm`` is not one positive number an axis, ``block`` below 1 or ``order`` unknown.
        ValueError: when ``level`` or ``draws`` are refused as in `bootstrap_mean`.
    """
    check_choice("order", order, ORDERS)
    _check_maps(importance, labels)
    size = tuple(importance.shape[2:])
    if spacing_mm is not None:
        check_spacing(spacing_mm, len(size))
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    voxel_ml = math.nan if spacing_mm is None or len(size) != 3 else math.prod(spacing_mm) / 1000

    regions = list(dict.fromkeys([ELSEWHERE, *names.values()]))
    sums, voxels = _block_sums(importance, _region_of(labels, regions, names), len(regions), block)
    touched = (voxels > 0).sum(axis=0)
    case = _figures(sums.sum(axis=0), voxels.sum(axis=0))
    drawn = _figures(*np.split(resampled_sums(np.concatenate([sums, voxels], axis=1), draws, seed), 2, axis=1))
    rows = []
    for k in np.flatnonzero(touched):
        share, ratio, density = (
            _interval(float(over[k]), float(under[k]), bounds(overs[:, k], unders[:, k], level), int(touched[k]))
            for (over, under), (overs, unders) in zip(case, drawn, strict=True)
        )
        room = int(voxels[:, k].sum())
        per_ml = Interval(density.mean / voxel_ml, density.low / voxel_ml, density.high / voxel_ml, density.count)
        rows.append(RegionRow(regions[k], room / labels.numel(), room * voxel_ml, share, ratio, density, per_ml))
    return sorted_rows(rows, order)


def sorted_rows(rows: Sequence[RegionRow], order: str) -> list[RegionRow]:
    """The largest ratio or share of the importance first, NaN last."""

    def key(row: RegionRow) -> float:
        value = (row.ratio if order == "ratio" else row.importance_share).mean
        return math.inf if math.isnan(value) else -value

    return sorted(rows, key=key)


def _region_of(labels: Tensor, regions: list[str], names: Mapping[Any, str]) -> NDArray[np.int64]:
    """The index of every voxel's region, ``(X, Y, Z)``."""
    named = {int(label): name for label, name in names.items()}
    values = _array(labels)
    present, inverse = np.unique(values, return_inverse=True)
    index = np.array([regions.index(named.get(int(label), ELSEWHERE)) for label in present])
    return index[inverse].reshape(values.shape)


def _block_sums(importance: Tensor, region: NDArray[np.int64], regions: int, block: int) -> tuple[NDArray, NDArray]:
    """Importance and voxels of every region in every block of voxels, ``(blocks, regions)`` each."""
    values = _array(importance.double())
    cell = np.zeros(values.shape, np.int64)
    for axis, side in enumerate(values.shape):
        place = np.arange(side) // block
        cell = cell * (place[-1] + 1) + np.expand_dims(place, [other for other in range(values.ndim) if other != axis])
    cell = cell * regions + region
    count = (cell.max() // regions + 1) * regions
    sums = np.bincount(cell.ravel(), values.ravel(), minlength=count)
    voxels = np.bincount(cell.ravel(), minlength=count).astype(np.float64)
    return sums.reshape(-1, regions), voxels.reshape(-1, regions)


def _figures(sums: NDArray, voxels: NDArray) -> list[tuple[NDArray, NDArray]]:
    """Numerator and denominator of the share of importance, of its ratio to the volume's, and of the density."""
    total, room = (np.broadcast_to(part.sum(axis=-1, keepdims=True), part.shape) for part in (sums, voxels))
    return [(sums, total), (sums * room, voxels * total), (sums, voxels)]


def _interval(over: float, under: float, edges: tuple[float, float], count: int) -> Interval:
    return Interval(over / under if under else math.nan, *(edges if count > 1 else (math.nan, math.nan)), count)


def _array(volume: Tensor) -> NDArray:
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return plain.detach().cpu().numpy()[0, 0]


def _check_maps(importance: Tensor, labels: Tensor) -> None:
    if importance.ndim < 3 or importance.shape[:2] != (1, 1) or labels.shape != importance.shape:
        raise ValueError(
            f"importance and labels must be one item (1, 1, *spatial) on one grid, got {tuple(importance.shape)} and "
            f"{tuple(labels.shape)}"
        )
    check_finite(importance, "importance")
    if bool((importance < 0).any()):
        least = float(importance.min())
        raise ValueError(f"importance must be at least 0, got {least}: take its magnitude or its positive part")
    if labels.is_floating_point() and bool((broken := labels != labels.round()).any()):
        raise ValueError(f"labels must be whole numbers, got {float(labels[broken][0])}")
