"""The files of a comparison: maps, pictures and scores of every case and method."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.data.decathlon import Case
from unoise_monai.handlers.cases import to_numpy
from unoise_monai.handlers.images import on_scan_grid
from unoise_monai.handlers.nifti import save_nifti
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.montage import montage
from unoise_monai.render.png import save_png
from unoise_monai.report.cases import CaseVolumes
from unoise_monai.types import LabelMap, VoxelMap

WHITE = 99.9
"""Percentile of a map that pictures show as 1: single voxels of some methods tower above all others."""

PICTURES: Mapping[str, Callable[..., NDArray[Any]]] = {"mip": mips, "montage": montage}


class CaseFiles:
    """Where a comparison's results lie.

    Args:
        output_dir: holds a folder for each case, and in it one for each method.
        pictures: whether to draw maps.
    """

    def __init__(self, output_dir: str | Path, pictures: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.pictures = pictures
        self._scan: Any = None
        self._outline: NDArray[Any] | None = None

    def folder(self, case: str, method: str) -> Path:
        return self.output_dir / case / method

    def _stem(self, case: str, method: str) -> Path:
        return self.folder(case, method) / f"{case}_{method}"

    def read(self, case: str, method: str) -> dict[str, Any]:
        """What is known of a method on a case.

        Raises:
            FileNotFoundError: when it was never run.
        """
        return json.loads((self.folder(case, method) / "scores.json").read_text())

    def done(self, case: str, method: str, settings: dict[str, Any]) -> bool:
        """Whether a result is there, with its map and the pictures that are asked for, that was made with these
        settings and did not fail."""
        folder, stem = self.folder(case, method), self._stem(case, method).name
        drawn = [f"{stem}_{name}.png" for name in PICTURES] if self.pictures else []
        if not all((folder / name).is_file() for name in ("scores.json", f"{stem}.nii.gz", *drawn)):
            return False
        known = self.read(case, method)
        return "failed" not in known and known["settings"] == settings

    def write(self, result: dict[str, Any]) -> None:
        """Save the scores: last of all, for they say that the rest is there.

        Raises:
            TypeError: when the result holds what JSON does not know.
        """
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        with atomic_path(self.folder(result["case"], result["method"]) / "scores.json") as temporary:
            temporary.write_text(text + "\n")

    def start(self, volumes: CaseVolumes, outline: LabelMap) -> None:
        """Read the scan that a case's pictures show, with the intensities that the clinic knows."""
        if self.pictures:
            self._scan = LoadImage(image_only=True, ensure_channel_first=True)(volumes.source)
            on_file = volumes.on_file_grid(outline.float())
            self._outline = on_scan_grid(
                to_numpy(on_file)[0].round().astype(np.uint8), on_file, self._scan, "seg", volumes.source
            )

    def write_map(self, method: str, volumes: CaseVolumes, importance: VoxelMap) -> None:
        """Write one map as NIfTI on the input file's grid, and its pictures."""
        stem = self._stem(volumes.name, method)
        on_file = volumes.on_file_grid(importance)
        voxels, affine = to_numpy(on_file)
        save_nifti(voxels, affine, f"{stem}.nii.gz", volumes.source, f"attribution by {method}, raw values")
        if self.pictures:
            image, spacing_mm = to_canonical(*to_numpy(self._scan))
            shown = shares(on_scan_grid(voxels, on_file, self._scan, method, volumes.source))
            label = f"{method}, share of its {WHITE:g}th percentile"
            for name, draw in PICTURES.items():
                rgb = draw(image, spacing_mm, importance=shown, segmentation=self._outline, label=label)
                save_png(rgb, f"{stem}_{name}.png")


def finite(value: Any) -> Any:
    """A result as JSON takes it: None for numbers that are not finite, in dictionaries and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reason(error: Exception, case: Case, truth_dir: Path | None = None) -> str:
    """Why a case or a method failed, with the case's files by their names alone."""
    text = f"{type(error).__name__}: {error}"
    folders = [Path(case[key]).parent for key in ("image", "label") if key in case]
    for folder in folders if truth_dir is None else [*folders, truth_dir]:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def shares(values: NDArray[Any]) -> NDArray[np.float32]:
    """A map as pictures show it: 0 where it is 0 or below, 1 at its 99.9th percentile; of ranks that are all negative
    (a distance), from its lowest value on."""
    low = 0.0 if values.max() > 0 else float(values.min())
    high = float(np.percentile(values, WHITE))
    if high <= low:
        high = float(values.max())
    scaled = np.zeros(values.shape) if high <= low else (values - low) / (high - low)
    return np.asarray(scaled.clip(0, 1), dtype=np.float32)
