"""Times the pictures of a large volume: three maximum intensity projections and a montage of 20 slices.

    python benchmarks/rendering.py

A volume of 512 x 512 x 300 voxels, int16 and float32, stored as NIfTI stores it and as torch does, with an importance
map and a segmentation of vessels. First the drawing alone, then what a user waits for: the handler `PictureSaver` on a
float32 scan in a file, with maps in float32 as the networks give them. Writes benchmarks/results/rendering.json and
prints the tables that the docs quote.
"""

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
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import matplotlib as mpl
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from numpy.typing import NDArray

from unoise_monai.handlers import PictureSaver
from unoise_monai.handlers import savers as images
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
    saver = handler(volume, importance, segmentation, arguments.repeats)
    result = {
        "command": " ".join(["python", "benchmarks/rendering.py", *sys.argv[1:]]),
        "volume": f"{' x '.join(map(str, arguments.size))} voxels, importance float32, segmentation uint8, seed 0",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {"numpy": np.__version__, "matplotlib": mpl.__version__},
        "timed": {
            "rows": "mips() and montage(count=20) of volumes in memory, to RGB; the fastest of "
            f"{arguments.repeats} runs",
            "picture saver": "PictureSaver in an engine, on a float32 scan in an uncompressed NIfTI file and float32 "
            "maps in memory: reads the scan, turns and checks the volumes, draws both sheets, writes both as PNG; "
            f"the fastest of {arguments.repeats} runs and its parts",
        },
        "rows": rows,
        "picture saver": saver,
    }
    path = Path(__file__).resolve().parent / "results" / "rendering.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for table in (rows, [saver]):
        lines = [list(table[0]), ["---"] * len(table[0]), *([str(value) for value in row.values()] for row in table)]
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


def handler(image: NDArray, importance: NDArray, segmentation: NDArray, repeats: int) -> dict[str, float]:
    """Seconds of the handler that users run, and of its parts."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        nib.save(nib.Nifti1Image(image, affine), path)
        meta = {"filename_or_obj": str(path)}
        arrays = {"importance": importance, "seg": segmentation.astype(np.float32)}
        item = {
            key: MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine), meta=dict(meta))
            for key, array in arrays.items()
        }
        saver = PictureSaver(Path(folder) / "out", count=20)
        engine = Engine(lambda _, batch: [batch])
        saver.attach(engine)
        runs = []
        for _ in range(repeats):
            parts = dict.fromkeys(("reading", "drawing", "PNG"), 0.0)
            with (
                patch.object(images, "load_volume", timed(images.load_volume, parts, "reading")),
                patch.object(images, "PICTURES", {k: timed(v, parts, "drawing") for k, v in images.PICTURES.items()}),
                patch.object(images, "save_png", timed(images.save_png, parts, "PNG")),
            ):
                start = time.perf_counter()
                engine.run([item])
                total = time.perf_counter() - start
            runs.append({"all, s": total, **{f"{name}, s": seconds for name, seconds in parts.items()}})
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.png"))
    best = min(runs, key=lambda run: run["all, s"])
    best["all but reading, s"] = best["all, s"] - best["reading, s"]
    return {**{name: round(seconds, 2) for name, seconds in best.items()}, "PNG, MB": round(size / 1e6, 2)}


def timed(function: Callable[..., Any], parts: dict[str, float], name: str) -> Callable[..., Any]:
    """The function, its seconds added to its part."""

    def run(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        parts[name] += time.perf_counter() - start
        return result

    return run


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
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
