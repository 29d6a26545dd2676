"""The figures of one case: how well it was segmented, how large each class is, where importance lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unoise_monai.metrics.regions import region_importance


@dataclass(frozen=True)
class OrganFigures:
    """How much importance lies in one organ of a case."""

    organ: str
    volume_ml: float
    volume_share: float
    importance_share: float
    ratio: float
    """Share of the importance over share of the volume."""
    ratio_low: float
    """95% block-bootstrap interval, see `region_importance`; NaN of an organ within one block."""
    ratio_high: float
    mean_importance: float


def case_figures(
    importance: NDArray[np.float32],
    segmentation: NDArray[np.integer[Any]],
    label: NDArray[np.integer[Any]] | None,
    classes: Sequence[str],
    voxel_ml: float,
) -> dict[str, float]:
    """What ``cohort.csv`` says of a case, by column; all on the grid of the case's file.

    Args:
        importance: ``(X, Y, Z)``, in [0, 1].
        segmentation: class indices, ``(X, Y, Z)``.
        label: class indices, ``(X, Y, Z)``, where the case has a label.
        classes: their names, background first.
        voxel_ml: volume of a voxel.

    Returns:
        ``volume_ml_<class>``; ``importance_mean``, its percentiles ``_p50`` and ``_p95``, its means
        ``_in_foreground`` and ``_in_background``; with a label ``dice_<class>`` and their mean, ``dice``. NaN where
        there is nothing to measure.
    """
    counts = np.bincount(segmentation.ravel(), minlength=len(classes))
    figures = {f"volume_ml_{name}": float(counts[k]) * voxel_ml for k, name in enumerate(classes) if k}
    inside = segmentation > 0
    p50, p95 = np.percentile(importance, [50, 95])
    figures |= {
        "importance_mean": float(importance.mean(dtype=np.float64)),
        "importance_p50": float(p50),
        "importance_p95": float(p95),
        "importance_in_foreground": _mean(importance[inside]),
        "importance_in_background": _mean(importance[~inside]),
    }
    if label is not None:
        known = np.bincount(label.ravel(), minlength=len(classes))
        both = np.bincount(label[label == segmentation].ravel(), minlength=len(classes))
        dice = {
            f"dice_{name}": 2 * int(both[k]) / int(counts[k] + known[k]) if known[k] else math.nan
            for k, name in enumerate(classes)
            if k
        }
        there = [value for value in dice.values() if not math.isnan(value)]
        figures |= {"dice": sum(there) / len(there) if there else math.nan, **dice}
    return figures


def organ_figures(
    importance: NDArray[np.float32],
    organs: NDArray[np.integer[Any]],
    names: Mapping[int, str],
    voxel_ml: float,
) -> list[OrganFigures]:
    """The importance of each organ, the one that matters most for its size first; label 0 is "elsewhere"."""
    rows = region_importance(
        torch.from_numpy(np.ascontiguousarray(importance))[None, None],
        torch.from_numpy(organs.astype(np.int64))[None, None],
        names,
    )
    return [
        OrganFigures(
            row.name,
            row.volume_share * organs.size * voxel_ml,
            row.volume_share,
            row.importance_share.mean,
            row.ratio.mean,
            row.ratio.low,
            row.ratio.high,
            row.density.mean,
        )
        for row in rows
    ]


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
