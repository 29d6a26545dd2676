"""How far the map of the mean over border voxels lies from the mean of the border voxels' maps (Fazel, section IV).

    python benchmarks/borders.py                      # 3 validation volumes of Task04, 40 border voxels of each
    python benchmarks/borders.py --cases 1 --voxels 8 # a look

Both maps explain the same voxels: of each volume's border of the anterior hippocampus, so many are drawn.
`VoxelwiseMean` takes the mean over voxels. Compared are ranks (Spearman) and values (the L2 norm of the difference,
once the first map is scaled to the second by least squares, over the norm of the second), in fp32; an empty map, as
Grad-CAM's may be, is as far as can be from any other. Task04 (CC BY-SA 4.0) is read from ../shared/data. Writes
benchmarks/results/borders.json and prints the table that the docs quote.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from iterative_paper import HIPPOCAMPUS, utility, validation_volumes
from torch import Tensor, nn
from visibility import ROOT, machine

from unoise_monai.attribution import Region, border_mean
from unoise_monai.attribution.base import make_attributor
from unoise_monai.attribution.composed import VoxelwiseMean
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.overlap import rank_correlation
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, VoxelMap

LABEL = 1
SEED = 0
COMPARED = (
    ("saliency", "signed"),
    ("saliency", "absolute"),
    ("input_x_gradient", "signed"),
    ("input_x_gradient", "absolute"),
    ("guided_backprop", "signed"),
    ("guided_backprop", "absolute"),
    ("deconvolution", "signed"),
    ("deconvolution", "absolute"),
    ("grad_cam", "signed"),
    ("grad_cam", "positive"),
)
"""Methods and the sign that is taken of each map."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3, help="the first so many validation volumes")
    parser.add_argument("--voxels", type=int, default=40, help="of the border, of each volume")
    arguments = parser.parse_args()
    network = utility(HIPPOCAMPUS)
    cases = []
    for volumes in validation_volumes(arguments.cases):
        with evaluating(network):
            logits = VolumeNetwork(network)(volumes.image.as_subclass(Tensor))
        whole = border_mean(logits, LABEL)
        region = drawn(whole, arguments.voxels)
        found: dict[str, Any] = {
            "case": volumes.name,
            "border_voxels": int(whole.mask.sum()),
            "voxels": int(region.mask.sum()),
        }
        found["methods"] = [compared(network, volumes.image, region, *each) for each in COMPARED]
        cases.append(found)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/borders.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": SEED,
        "label": LABEL,
        "means": summary(cases),
        "cases": cases,
    }
    path = ROOT / "benchmarks" / "results" / "borders.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result["means"]))


def drawn(region: Region, count: int) -> Region:
    """So many voxels of a region, drawn from the seed."""
    inside = region.mask.flatten().nonzero().flatten()
    chosen = inside[torch.randperm(len(inside), generator=torch.Generator().manual_seed(SEED))[:count]]
    mask = torch.zeros(region.mask.numel(), dtype=torch.bool)
    mask[chosen] = True
    return replace(region, mask=mask.view_as(region.mask))


def compared(network: nn.Module, image: Image, region: Region, method: str, sign: str) -> dict[str, Any]:
    """One method's two maps: how alike they are, and what they cost."""
    start = time.perf_counter()
    at_once = make_attributor(method, network, sign=sign)(image, region).as_subclass(Tensor)
    middle = time.perf_counter()
    one_by_one = VoxelwiseMean(network, method, sign=sign)(image, region).as_subclass(Tensor)
    seconds = middle - start, time.perf_counter() - middle
    return {
        "method": method,
        "sign": sign,
        "rank_correlation": float(rank_correlation(at_once, one_by_one)),
        "relative_difference": relative_difference(at_once, one_by_one),
        "seconds_at_once": round(seconds[0], 2),
        "seconds_one_by_one": round(seconds[1], 1),
    }


def relative_difference(first: VoxelMap, second: VoxelMap) -> float:
    """The norm of ``a * first - second`` over that of ``second``, ``a`` by least squares: 0 of multiples, at most 1.

    A map that is 0 everywhere, as Grad-CAM's may be, is at 1 from any other, and at 0 from another such.
    """
    first, second = first.double().flatten(), second.double().flatten()
    if not bool(first.any()) or not bool(second.any()):
        return float(bool(first.any()) or bool(second.any()))
    scale = first @ second / (first @ first)
    return float((scale * first - second).norm() / second.norm())


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the volumes, and what all of the border would have taken."""
    rows = []
    for index, (method, sign) in enumerate(COMPARED):
        each = [case["methods"][index] for case in cases]
        row: dict[str, Any] = {"method": method, "sign": sign}
        for name in ("rank_correlation", "relative_difference", "seconds_at_once", "seconds_one_by_one"):
            row[name] = float(np.mean([one[name] for one in each]))
        per_voxel = [one["seconds_one_by_one"] / case["voxels"] for one, case in zip(each, cases, strict=True)]
        whole = [seconds * case["border_voxels"] for seconds, case in zip(per_voxel, cases, strict=True)]
        rows.append({**row, "seconds_whole_border": round(float(np.mean(whole)))})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = ["method", "sign of each map", "rank correlation", "relative difference", "at once, s", "one by one, s"]
    lines = [[*head, "all of the border, s"], ["---"] * (len(head) + 1)]
    for row in rows:
        cells = [f"{row['rank_correlation']:.3f}", f"{row['relative_difference']:.2g}"]
        cells += [f"{row['seconds_at_once']:.1f}", f"{row['seconds_one_by_one']:.0f}"]
        lines.append([row["method"], row["sign"], *cells, f"{row['seconds_whole_border']:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
