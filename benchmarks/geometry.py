"""Explains a real CT and an oblique, left-handed phantom by the pancreas bundle, and compares the grids of the files.

    python benchmarks/geometry.py

The importance volumes are read again by nibabel and by SimpleITK. Writes benchmarks/results/geometry.json and prints
the table that the docs quote. The real CT is skipped where ../shared/data is absent.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

from unoise_monai.phantoms import write_phantom_cohort

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "pancreas_ct_unoise"
OUT = ROOT / "runs" / "benchmark_geometry"
REAL_CT = ROOT.parent / "shared" / "data" / "abdomen_ct" / "imagesTr" / "abdomen_001.nii.gz"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    phantoms = OUT / "phantoms"
    if not phantoms.is_dir():
        grid = {"size": (80, 70, 50), "spacing_mm": (3.2, 3.5, 5.0), "oblique_degrees": 20.0, "left_handed": True}
        write_phantom_cohort(phantoms, count=1, seed=9, **grid)
    results = [explain(path) for path in (REAL_CT, phantoms / "imagesTr" / "phantom_001.nii.gz") if path.is_file()]
    path = ROOT / "benchmarks" / "results" / "geometry.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    columns = list(results[0])
    lines = [columns, ["---"] * len(columns), *([str(value) for value in row.values()] for row in results)]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


def explain(image: Path) -> dict[str, object]:
    """Run the bundle's inference on one file and compare the importance's grid with the file's."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    start = time.perf_counter()
    subprocess.run([*command, "--dataset_dir", str(image), "--output_dir", str(OUT)], cwd=BUNDLE, check=True)
    seconds = time.perf_counter() - start
    case = image.name.removesuffix(".nii.gz")
    written = OUT / case / f"{case}_importance.nii.gz"
    ours, source = nib.load(written), nib.load(image)
    ours_itk, source_itk = SimpleITK.ReadImage(str(written)), SimpleITK.ReadImage(str(image))
    apart_itk = max(
        float(np.abs(np.subtract(getattr(ours_itk, name)(), getattr(source_itk, name)())).max())
        for name in ("GetOrigin", "GetSpacing", "GetDirection")
    )
    return {
        "image": case,
        "shape": "x".join(map(str, source.shape)),
        "same shape": ours.shape == source.shape and ours_itk.GetSize() == source_itk.GetSize(),
        "affine apart, nibabel": f"{np.abs(ours.affine - source.affine).max():.1e}",
        "origin, spacing, direction apart, SimpleITK": f"{apart_itk:.1e}",
        "seconds, start of Python included": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
