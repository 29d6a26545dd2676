"""Measures the semi-automatic vessel labels: on vessel phantoms, and on the real angiogram where it is there.

    python benchmarks/vesselness.py --seeds 100 101 102 103 104 105

Each phantom is drawn with and without its soft tissue; its label is exact. The real volume has no label: its soft
tissue is removed already, and its voxels above 60 stand for one. Writes benchmarks/results/vesselness.json and
prints a table.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from unoise_monai.data.vessels import vessel_label
from unoise_monai.phantoms.vessels import vessel_phantom

ROOT = Path(__file__).resolve().parents[1]
ANGIOGRAM = ROOT.parent / "shared" / "data" / "tof_mra" / "chris_MRA.nii.gz"
REFERENCE_ABOVE = 60


def volumes(seeds: list[int]) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[float]]]:
    """Name, image, reference and spacing in mm."""
    for stripped in (False, True):
        for seed in seeds:
            phantom = vessel_phantom(seed, stripped=stripped)
            name = f"phantom {seed}, {'soft tissue removed' if stripped else 'whole'}"
            yield name, phantom.image, phantom.label > 0, voxel_sizes(phantom.affine).tolist()
    if ANGIOGRAM.is_file():
        volume = nib.load(ANGIOGRAM)
        image = np.asarray(volume.dataobj)
        yield "chris_MRA, voxels above 60", image, image > REFERENCE_ABOVE, voxel_sizes(volume.affine).tolist()


def measure(image: np.ndarray, reference: np.ndarray, spacing_mm: list[float]) -> dict[str, float]:
    """Overlap of the semi-automatic label with the reference, and the time it took."""
    start = time.perf_counter()
    label = vessel_label(image, spacing_mm) > 0
    seconds = time.perf_counter() - start
    common = float((label & reference).sum())
    return {
        "dice": round(2 * common / float(label.sum() + reference.sum()), 3),
        "precision": round(common / float(label.sum()), 3),
        "recall": round(common / float(reference.sum()), 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 106)), help="of the phantoms")
    arguments = parser.parse_args()
    rows = [{"volume": name, **measure(*volume)} for name, *volume in volumes(arguments.seeds)]
    result = {
        "command": " ".join(["python", "benchmarks/vesselness.py", *sys.argv[1:]]),
        "seeds": arguments.seeds,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("itk", "SimpleITK", "numpy", "unoise-monai")},
        "volumes": rows,
    }
    path = ROOT / "benchmarks" / "results" / "vesselness.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(value) for value in row.values()] for row in rows)]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
