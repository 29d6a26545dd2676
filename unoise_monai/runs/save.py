"""Writes what there is to say of a case: volumes, pictures, numbers, and the record, last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.data.transforms import preprocessing
from unoise_monai.handlers.savers import QUANTITIES, map_quantity, on_scan_grid, save_nifti, to_numpy
from unoise_monai.inference.explain import postprocessing
from unoise_monai.metrics.regions import region_importance
from unoise_monai.render.canvas import DISPLAY_PERCENTILE, display_scale, save_png, to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.slices import montage
from unoise_monai.runs.comparison import CaseVolumes
from unoise_monai.runs.explain import CohortExplainer, Explained
from unoise_monai.runs.load import Loaded
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


MIP_OPTIONS = ("window", "style", "threshold", "slab_mm")
MONTAGE_OPTIONS = ("window", "style", "threshold", "axis", "count", "crop_mm")


class CaseWriter:
    """Writes cases into an output.

    Args:
        explainer: that explains them; it knows the way back to the files' grids.
        output: the folder of the whole output.
    """

    def __init__(self, explainer: CohortExplainer, output: Path) -> None:
        self.explainer, self.bundle, self.settings = explainer, explainer.bundle, explainer.settings
        self.records = Records(output)
        options = self.bundle.pictures
        self.pictures: dict[str, Callable[..., NDArray[np.uint8]]] = {"mip": mips, "montage": montage}
        self.options = {
            "mip": {name: options[name] for name in MIP_OPTIONS if name in options},
            "montage": {name: options[name] for name in MONTAGE_OPTIONS if name in options},
        }
        self.preprocess = preprocessing(explainer.task, with_label=False)
        self.restore = postprocessing(self.preprocess)

    def __call__(self, explained: Explained) -> dict[str, Any]:
        """Write a case's files, then its record, which is also returned.

        Raises:
            OSError: when the output cannot be written.
        """
        start = time.perf_counter()
        loaded = explained.loaded
        case, stem = loaded.case, loaded.case.name
        folder = self.records.output / stem
        found = self.restore({**loaded.item, "pred": explained.pred})
        importance, affine = to_numpy(found["importance"])
        segmentation, _ = to_numpy(found["seg"])
        # A DICOM series is no file whose header could be looked at.
        source = None if case.series else case.files[0]
        quantity = self.settings.quantity
        volumes = {
            quantity: (
                map_quantity(importance, quantity, self.bundle.sigma_min, self.bundle.sigma_max),
                QUANTITIES[quantity],
            ),
            "seg": (segmentation, ", ".join(f"{k} {name}" for k, name in enumerate(self.bundle.task.class_names))),
        }
        case_volumes = CaseVolumes(stem, Path(), loaded.item["image"][None], None, loaded.item, self.preprocess)
        maps = {method: to_numpy(case_volumes.on_file_grid(map_))[0] for method, map_ in explained.maps.items()}
        volumes |= {method: (voxels, f"attribution by {method}, raw values") for method, voxels in maps.items()}
        names = [f"{stem}_{name}.nii.gz" for name in volumes]
        drawn = {"": importance} | maps if self.settings.images else {}
        names += [picture_name(stem, method, picture) for method in drawn for picture in self.pictures]
        self.records.begin(stem, self.settings.digest, names)
        for name, (voxels, description) in volumes.items():
            save_nifti(voxels, affine, folder / f"{stem}_{name}.nii.gz", source, description)
        self._draw(loaded, folder, found, drawn)
        # Of a sheared grid, that of a tilted gantry, the sides' product would be too much.
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        figures: dict[str, Any] = case_figures(
            importance, segmentation, loaded.label, self.bundle.task.class_names, voxel_ml
        )
        organs = [] if loaded.organs is None else organ_figures(importance, loaded.organs, loaded.organ_names, voxel_ml)
        files = {name: fingerprint([folder / name]) for name in names}
        record = {
            "case": stem,
            "status": "done",
            "settings": self.settings.digest,
            "source": loaded.source,
            "shown": case.shown,
            "files": files,
            "figures": figures,
            "organs": [asdict(row) for row in organs],
            "voxels": list(importance.shape),
            "spacing_mm": [round(float(side), 4) for side in voxel_sizes(affine)],
            "device": explained.device,
            "note": explained.note,
            "seconds": loaded.seconds + explained.seconds + time.perf_counter() - start,
            "peak_memory_gb": explained.peak_memory_gb,
        }
        self.records.write(record)
        return record

    def _draw(
        self, loaded: Loaded, folder: Path, found: Mapping[Hashable, Any], maps: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """MIP and montage of each map, by method; the importance has none."""
        image, spacing_mm = to_canonical(*to_numpy(loaded.scan))
        outline = on_scan_grid(to_numpy(found["seg"])[0], found["seg"], loaded.scan, "seg", folder)
        for method, voxels in maps.items():
            shown = on_scan_grid(voxels, found["importance"], loaded.scan, method or "importance", folder)
            label = {"label": f"{method}, share of its {DISPLAY_PERCENTILE:g}th percentile"} if method else {}
            for picture, draw in self.pictures.items():
                rgb = draw(
                    image,
                    spacing_mm,
                    importance=display_scale(shown) if method else shown,
                    segmentation=outline,
                    **self.options[picture],
                    **label,
                )
                save_png(rgb, folder / picture_name(loaded.case.name, method, picture))


def picture_name(case: str, method: str, picture: str) -> str:
    """``case_mip.png``; of a further method ``case_saliency_mip.png``."""
    return "_".join(filter(None, (case, method, picture))) + ".png"
