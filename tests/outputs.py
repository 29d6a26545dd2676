"""The output of a small finished run: phantoms, their maps and pictures, and the tables beside them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from unoise_monai.data.finding import list_cases
from unoise_monai.handlers.savers import save_nifti
from unoise_monai.render.canvas import save_png, to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.slices import montage

FAILED = "phantom_broken"
ODD = '<script>alert(1)</script> & "co"'
REASON = "the file <b>ends early</b>: fetch it again"


def write_output(output: Path, cohort: Path, pictures: bool = True) -> dict[str, Path]:
    """Write what a run over a Decathlon folder leaves, with a second method and a case that failed; gives the scans."""
    scans, rows, organs = {}, [], []
    for number, case in enumerate(list_cases(cohort)):
        name, scan = case["case"], nib.load(case["image"])
        label = np.asarray(nib.load(case["label"]).dataobj).astype(np.uint8)
        importance = gaussian_filter((label > 0).astype(np.float32), 1.5)
        importance /= importance.max()
        write_case(output, name, scan, {"importance": importance, "saliency": 40 * importance**2}, label, pictures)
        scans[name] = Path(case["image"])
        rows.append(
            {
                "case": name,
                "status": "done",
                "dice": [0.9, 0.10, 0.85][number % 3],
                "volume_ml_target": float((label > 0).sum()) / 1000,
                "importance_mean": importance.mean(),
                "importance_in_foreground": importance[label > 0].mean(),
                "importance_in_background": importance[label == 0].mean(),
                "seconds": [9.5, 10.25, 100.0][number % 3],
                "seg_sha256": "ef" * 32,
            }
        )
        organs += [
            {"case": name, "organ": organ, "share": share} for organ, share in (("liver", 0.25), ("spleen", 0.5))
        ]
    rows += [{"case": FAILED, "status": "failed"}, {"case": ODD, "status": "done", "dice": "nan"}]
    write_table(output / "cohort.csv", rows)
    write_table(output / "organs.csv", organs)
    failure = {"case": FAILED, "file": f"{FAILED}.nii.gz", "stage": "read", "reason": REASON}
    write_table(output / "failures.csv", [failure])
    return scans


def write_case(
    output: Path,
    name: str,
    scan: nib.Nifti1Image,
    maps: Mapping[str, np.ndarray],
    label: np.ndarray,
    pictures: bool = True,
) -> None:
    """Write one case's maps and segmentation on its scan's grid, and their pictures."""
    stem = f"{output / name / name}_"
    save_nifti(label, scan.affine, f"{stem}seg.nii.gz")
    image, spacing_mm = to_canonical(scan.get_fdata(), scan.affine)
    outline = to_canonical(label, scan.affine)[0]
    for key, values in maps.items():
        save_nifti(values, scan.affine, f"{stem}{key}.nii.gz")
        if not pictures:
            continue
        shown = to_canonical(values / values.max(), scan.affine)[0]
        first = "" if key == "importance" else f"{key}_"
        save_png(mips(image, spacing_mm, shown, outline), f"{stem}{first}mip.png")
        if key == "importance":
            save_png(montage(image, spacing_mm, shown, outline), f"{stem}montage.png")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; a row may lack columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
