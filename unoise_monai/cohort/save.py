"""Writes what there is to say of a case: volumes on its file's grid, pictures, figures, and the record, last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.cohort.explain import CohortExplainer, Explained
from unoise_monai.cohort.fallback import Attempt
from unoise_monai.cohort.figures import case_figures, organ_figures
from unoise_monai.cohort.load import Loaded
from unoise_monai.cohort.records import Records, fingerprint
from unoise_monai.handlers.cases import to_numpy
from unoise_monai.handlers.images import on_scan_grid
from unoise_monai.handlers.nifti import save_nifti
from unoise_monai.handlers.quantity import QUANTITIES, map_quantity
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.montage import montage
from unoise_monai.render.png import save_png
from unoise_monai.report.files import WHITE, shares

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
        self.to_file = explainer.explainer(Attempt(torch.device("cpu"), None, ""))

    def __call__(self, explained: Explained) -> dict[str, Any]:
        """Write a case's files, then its record, which is also returned.

        Raises:
            OSError: when the output cannot be written.
        """
        start = time.perf_counter()
        loaded = explained.loaded
        case, stem = loaded.case, loaded.case.name
        self.records.forget(stem)
        folder = self.records.output / stem
        found = self.to_file.restore(loaded.item, explained.pred)
        importance, affine = to_numpy(found.importance)
        segmentation, _ = to_numpy(found.segmentation)
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
        case_volumes = self.explainer.volumes(loaded, self.to_file)
        maps = {method: to_numpy(case_volumes.on_file_grid(map_))[0] for method, map_ in explained.maps.items()}
        volumes |= {method: (voxels, f"attribution by {method}, raw values") for method, voxels in maps.items()}
        for name, (voxels, description) in volumes.items():
            save_nifti(voxels, affine, folder / f"{stem}_{name}.nii.gz", source, description)
        names = [f"{stem}_{name}.nii.gz" for name in volumes]
        if self.settings.images:
            names += self._draw(loaded, folder, found, {"": importance} | maps)
        spacing_mm = tuple(float(side) for side in voxel_sizes(affine))
        figures: dict[str, Any] = case_figures(
            importance, segmentation, loaded.label, self.bundle.task.class_names, spacing_mm
        )
        organs = (
            [] if loaded.organs is None else organ_figures(importance, loaded.organs, loaded.organ_names, spacing_mm)
        )
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
            "spacing_mm": [round(side, 4) for side in spacing_mm],
            "device": explained.device,
            "note": explained.note,
            "seconds": loaded.seconds + explained.seconds + time.perf_counter() - start,
            "peak_memory_gb": explained.peak_memory_gb,
        }
        self.records.write(record)
        return record

    def _draw(self, loaded: Loaded, folder: Path, found: Any, maps: Mapping[str, NDArray[np.float32]]) -> list[str]:
        """MIP and montage of the importance and of every further map; the names of the files."""
        image, spacing_mm = to_canonical(*to_numpy(loaded.scan))
        outline = on_scan_grid(to_numpy(found.segmentation)[0], found.segmentation, loaded.scan, "seg", folder)
        names = []
        for method, voxels in maps.items():
            shown = on_scan_grid(voxels, found.importance, loaded.scan, method or "importance", folder)
            label = {"label": f"{method}, share of its {WHITE:g}th percentile"} if method else {}
            for picture, draw in self.pictures.items():
                name = "_".join(filter(None, (loaded.case.name, method, picture))) + ".png"
                rgb = draw(
                    image,
                    spacing_mm,
                    importance=shares(shown) if method else shown,
                    segmentation=outline,
                    **self.options[picture],
                    **label,
                )
                save_png(rgb, folder / name)
                names.append(name)
        return names
