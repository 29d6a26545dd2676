"""Writes what there is to say of a case: volumes on its file's grid, pictures, figures, and the record, last."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.cohort.explain import CohortExplainer, Explained
from unoise_monai.cohort.figures import case_figures, organ_figures
from unoise_monai.cohort.load import Loaded
from unoise_monai.cohort.records import Records, fingerprint
from unoise_monai.data import preprocessing
from unoise_monai.handlers.cases import to_numpy
from unoise_monai.handlers.images import on_scan_grid
from unoise_monai.handlers.nifti import save_nifti
from unoise_monai.handlers.quantity import QUANTITIES, map_quantity
from unoise_monai.inference import postprocessing
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.montage import montage
from unoise_monai.render.png import save_png
from unoise_monai.report.cases import CaseVolumes
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
            label = {"label": f"{method}, share of its {WHITE:g}th percentile"} if method else {}
            for picture, draw in self.pictures.items():
                rgb = draw(
                    image,
                    spacing_mm,
                    importance=shares(shown) if method else shown,
                    segmentation=outline,
                    **self.options[picture],
                    **label,
                )
                save_png(rgb, folder / picture_name(loaded.case.name, method, picture))


def picture_name(case: str, method: str, picture: str) -> str:
    """``case_mip.png``; of a further method ``case_saliency_mip.png``."""
    return "_".join(filter(None, (case, method, picture))) + ".png"
