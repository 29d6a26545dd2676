"""The output of a small finished run: phantoms, their maps and pictures, and the records of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from unoise_monai.data.finding import list_cases
from unoise_monai.data.nifti import write_nifti
from unoise_monai.render.canvas import save_png, to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.slices import montage
from unoise_monai.runs.records import Records

FAILED = "phantom_broken"
ODD = '<img src=x onerror=alert(1)> & "co"'
REASON = "the file <b>ends early</b>: fetch it again"
HASH = "ef" * 32


def write_output(output: Path, cohort: Path, pictures: bool = True) -> dict[str, Path]:
    """Write what a run over a Decathlon folder leaves, with a second method and a case that failed; gives the scans."""
    scans = {}
    for number, case in enumerate(list_cases(cohort)):
        name, scan = case["case"], nib.load(case["image"])
        label = np.asarray(nib.load(case["label"]).dataobj).astype(np.uint8)
        importance = gaussian_filter((label > 0).astype(np.float32), 1.5)
        importance /= importance.max()
        write_case(output, name, scan, {"importance": importance, "saliency": 40 * importance**2}, label, pictures)
        scans[name] = Path(case["image"])
        numbers = {
            "dice": [0.9, 0.10, 0.85][number % 3],
            "volume_ml_target": float((label > 0).sum()) / 1000,
            "importance_mean": float(importance.mean()),
            "importance_in_foreground": float(importance[label > 0].mean()),
            "importance_in_background": float(importance[label == 0].mean()),
        }
        organs = [{"organ": organ, "importance_share": share} for organ, share in (("liver", 0.25), ("spleen", 0.5))]
        write_record(output, name, numbers, organs=organs, seconds=[9.5, 10.25, 100.0][number % 3])
    write_record(output, FAILED, status="failed", stage="read", reason=REASON)
    write_record(output, ODD, {"dice": float("nan")})
    return scans


def write_record(
    output: Path, name: str, numbers: Mapping[str, float] | None = None, status: str = "done", **given: Any
) -> None:
    """Write a case's record as a run does, naming the files that lie in its folder."""
    folder = output / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    record = {"case": name, "status": status, "settings": "digest", "shown": f"{name}.nii.gz", **given}
    if status == "done":
        record |= {"source": {"bytes": 1, "sha256": HASH}, "numbers": dict(numbers or {})}
        record["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": HASH} for path in files}
    Records(output).write(record)


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
    write_nifti(f"{stem}seg.nii.gz", label, scan.affine)
    image, spacing_mm = to_canonical(scan.get_fdata(), scan.affine)
    outline = to_canonical(label, scan.affine)[0]
    for key, values in maps.items():
        write_nifti(f"{stem}{key}.nii.gz", values, scan.affine)
        if not pictures:
            continue
        shown = to_canonical(values / values.max(), scan.affine)[0]
        first = "" if key == "importance" else f"{key}_"
        save_png(mips(image, spacing_mm, shown, outline), f"{stem}{first}mip.png")
        if key == "importance":
            save_png(montage(image, spacing_mm, shown, outline), f"{stem}montage.png")
