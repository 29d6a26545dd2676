"""Times the pictures of a large volume: three maximum intensity projections and a montage of 20 slices.

    python benchmarks/rendering.py

A volume of 512 x 512 x 300 voxels, int16 and float32, stored as NIfTI stores it and as torch does, with an importance
map and a segmentation of vessels. Writes benchmarks/results/rendering.json and prints the table that the docs quote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from unoise_monai.render import mips, montage, to_canonical

SPACING_MM = (0.4, 0.4, 0.6)
DTYPES = ("int16", "float32")
ORDERS = ("F", "C")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), help="voxels of the volume")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, the fastest counts")
    arguments = parser.parse_args()
    volume, importance, segmentation = tubes(tuple(arguments.size))
    mips(volume[:8, :8, :8], SPACING_MM)  # fonts are looked up once a process
    rows = [
        measure(volume.astype(dtype), importance, segmentation, order, arguments.repeats)
        for dtype in DTYPES
        for order in ORDERS
    ]
    result = {
        "command": " ".join(["python", "benchmarks/rendering.py", *sys.argv[1:]]),
        "volume": f"{' x '.join(map(str, arguments.size))} voxels, importance float32, segmentation uint8, seed 0",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {"numpy": np.__version__, "matplotlib": mpl.__version__},
        "rows": rows,
    }
    path = Path(__file__).resolve().parent / "results" / "rendering.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


def tubes(size: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Noise with bright tubes along the third axis, importance that falls with the distance to them, their labels."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in size[:2]), indexing="ij")
    volume = rng.normal(100, 20, size).astype(np.float32)
    importance = np.empty(size, dtype=np.float32)
    segmentation = np.empty(size, dtype=np.uint8)
    for z in range(size[2]):
        swing = 20 * np.sin(z / 30)
        distance = np.min([np.hypot(x - c * size[0] - swing, y - c * size[1] + swing) for c in (0.3, 0.5, 0.7)], axis=0)
        segmentation[..., z] = distance < 5
        importance[..., z] = np.exp(-distance / 10)
        volume[..., z] += 300 * (distance < 5)
    return volume, importance, segmentation


def measure(image: NDArray, importance: NDArray, segmentation: NDArray, order: str, repeats: int) -> dict[str, object]:
    """Seconds and memory of both sheets, of volumes whose X and Y run against the patient's, as DICOM's do."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])
    stored = [np.asarray(volume[::-1, ::-1], order=order) for volume in (image, importance, segmentation)]
    (scan, spacing_mm), (shares, _), (labels, _) = (to_canonical(volume, affine) for volume in stored)
    three = partial(mips, scan, spacing_mm, shares, labels)
    twenty = partial(montage, scan, spacing_mm, shares, labels, count=20)
    seconds = {"three MIPs, s": fastest(three, repeats), "montage of 20, s": fastest(twenty, repeats)}
    return {
        "voxels": str(image.dtype),
        "memory order": order,
        **seconds,
        "both, s": round(sum(seconds.values()), 2),
        "peak beside the volumes, MB": round(max(peak_bytes(three), peak_bytes(twenty)) / 1e6),
        "volumes, MB": round(sum(volume.nbytes for volume in stored) / 1e6),
    }


def fastest(run: Callable[[], NDArray], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 2)


def peak_bytes(run: Callable[[], NDArray]) -> int:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
