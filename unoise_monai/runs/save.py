"""Writes the results of a case: volumes, pictures, numbers, and the record, last."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.bundle import Bundle
from unoise_monai.handlers.savers import to_numpy
from unoise_monai.metrics.overlap import dice_per_class
from unoise_monai.metrics.regions import region_importance
from unoise_monai.runs.explain import Explained
from unoise_monai.runs.records import Records, fingerprint


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
    """The columns of ``cohort.csv`` for a case; all on the grid of the case's file.

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
        values = dice_per_class(segmentation, label, len(classes))
        dice = {f"dice_{name}": value for name, value in zip(classes[1:], values, strict=True)}
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


class CaseWriter:
    """Writes cases into an output, with the savers of their bundle.

    Args:
        bundle: that explains them.
        records: of the whole output.
        digest: of the run's settings.
    """

    def __init__(self, bundle: Bundle, records: Records, digest: str) -> None:
        self.bundle, self.records, self.digest = bundle, records, digest

    def __call__(self, explained: Explained) -> dict[str, Any]:
        """Write a case's files, then its record, which is also returned.

        Of a case that is done already, only the methods that were run are written: all else stays as it is.

        Raises:
            OSError: when the output cannot be written.
        """
        start = time.perf_counter()
        loaded, explainer = explained.loaded, self.bundle.explainer
        name, folder = loaded.case.name, self.records.output / loaded.case.name
        item: dict[Any, Any] = dict(explainer.postprocess({**loaded.item, "pred": explained.pred}))
        for method, values in explained.maps.items():
            item[method] = explainer.on_file_grid(values, loaded.item)
        known = self.records.read(name) if explained.job.done else None
        # Another worker may have begun it, and died.
        if known is None or known["status"] != "done":
            known = {}
        kept = {
            method: result for method, result in known.get("methods", {}).items() if method not in explained.results
        }
        again = {file for method in explained.results for file in self._files(name, method)}
        keep = {file: known_as for file, known_as in known.get("files", {}).items() if file not in again}
        written = {method: self._files(name, method) for method in (*(() if known else ("",)), *explained.maps)}
        self.records.begin(name, self.digest, [file for files in written.values() for file in files], keep)
        for method in written:
            for saver in self.bundle.savers:
                saver.save(item, name, folder, loaded.scan, method)
        record = {
            **(known or self._facts(item, explained)),
            "files": keep | {file: fingerprint([folder / file]) for files in written.values() for file in files},
            "methods": kept
            | {method: {**result, "files": written.get(method, [])} for method, result in explained.results.items()},
        }
        if not known:
            record["seconds"] = loaded.seconds + explained.seconds + time.perf_counter() - start
        self.records.write(record)
        return record

    def _files(self, name: str, method: str) -> list[str]:
        return [file for saver in self.bundle.savers for file in saver.files(name, method)]

    def _facts(self, item: Mapping[Any, Any], explained: Explained) -> dict[str, Any]:
        """What the record says of the case itself."""
        loaded = explained.loaded
        importance, affine = to_numpy(item["importance"])
        # Of a sheared grid, that of a tilted gantry, the sides' product would be too much.
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        organs = [] if loaded.organs is None else organ_figures(importance, loaded.organs, loaded.organ_names, voxel_ml)
        segmentation = to_numpy(item["seg"])[0]
        return {
            "case": loaded.case.name,
            "status": "done",
            "settings": self.digest,
            "source": loaded.source,
            "shown": loaded.case.shown,
            "figures": case_figures(importance, segmentation, loaded.label, self.bundle.class_names, voxel_ml),
            "organs": [asdict(row) for row in organs],
            "voxels": list(importance.shape),
            "spacing_mm": [round(float(side), 4) for side in voxel_sizes(affine)],
            "device": explained.device,
            "note": explained.note,
            "peak_memory_gb": explained.peak_memory_gb,
        }
