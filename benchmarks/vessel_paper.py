"""Draws Fig. 2 to 5 of Chatterjee et al., ISMRM 2021, with the vessel bundle's network, and measures where maps look.

    python benchmarks/vessel_paper.py            # three methods and two layer-wise ones, on two angiograms
    python benchmarks/vessel_paper.py --steps 4  # a look: few steps of integrated gradients

The real angiogram is chris_MRA (C. Rorden, CC BY-NC 4.0), read from ../shared/data; its soft tissue is removed, and its
vessels are the voxels above 60. The other one is a phantom with its soft tissue. Measured is where the voxels of the
highest values lie: on vessels, within 3 mm of them, elsewhere, and behind the volume's middle. Writes
benchmarks/results/vessel_paper.json and docs/images/vessel_*.png, and prints the tables that the docs quote.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from iterative_paper import label_of
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray
from torch import Tensor
from vessels import real_case, shipped
from visibility import ROOT, machine

from unoise_monai.attribution import class_sum
from unoise_monai.attribution.layer_guided import LayerGuidedActivation, LayerGuidedBackprop
from unoise_monai.attribution.layerwise import every_layer
from unoise_monai.attribution.registry import make_attributor
from unoise_monai.data import segmentation_task, vessel_phantom
from unoise_monai.data.decathlon import Case
from unoise_monai.data.nifti import write_nifti
from unoise_monai.handlers.cases import to_numpy
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.metrics import foreground_dice
from unoise_monai.metrics.ranking import distance_map, importance_order, top_share
from unoise_monai.networks.modes import evaluating
from unoise_monai.networks.outputs import probabilities
from unoise_monai.render import layer_grid, mips, montage, save_png, to_canonical
from unoise_monai.report.cases import CaseVolumes, load_case
from unoise_monai.report.files import WHITE, shares
from unoise_monai.types import VoxelMap

IMAGES = ROOT / "docs" / "images"
OUT = ROOT / "runs" / "vessel_paper"
PHANTOM_SEED = 31
NEAR_MM = 3.0
SHARES = {"0.1%": 0.001, "1%": 0.01, "5%": 0.05}
AREAS = ("vessels", "near", "elsewhere", "behind")
BACKGROUND = -1.0
"""The lowest normalised intensity of an angiogram."""
LAYERWISE = {"layer_guided_backprop": LayerGuidedBackprop, "layer_guided_activation": LayerGuidedActivation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of integrated gradients")
    parser.add_argument("--memory-gb", type=float, help="what a pass may take, in 1e9 bytes")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    running = {"memory_gb": arguments.memory_gb, "precision": "auto"}
    methods: dict[str, dict[str, Any]] = {
        "guided_backprop": running,
        "deconvolution": running,
        # From the background: what is as dark as it gets 0.
        "integrated_gradients": {
            **running,
            "steps": arguments.steps,
            "baseline": torch.full((1, 1, 1, 1, 1), BACKGROUND),
        },
    }
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/vessel_paper.py", *sys.argv[1:]]),
        "machine": machine(),
        "phantom_seed": PHANTOM_SEED,
        "near_mm": NEAR_MM,
        "integrated_gradients_steps": arguments.steps,
        "volumes": {},
    }
    for number, case in enumerate([*real_case(OUT), phantom()]):
        result["volumes"][case["case"]] = explained(case, methods, running, pictures=number == 0)
    path = ROOT / "benchmarks" / "results" / "vessel_paper.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(tables(result))


def phantom() -> Case:
    """An angiogram that the network was not trained on, with its soft tissue, and its exact vessels."""
    drawn = vessel_phantom(PHANTOM_SEED, stripped=False)
    image, label = (OUT / f"phantom_{part}.nii.gz" for part in ("image", "label"))
    write_nifti(image, drawn.image, drawn.affine)
    write_nifti(label, drawn.label, drawn.affine)
    return {"case": "phantom", "image": str(image), "label": str(label)}


def explained(
    case: Case, methods: dict[str, dict[str, Any]], running: dict[str, Any], pictures: bool
) -> dict[str, Any]:
    """Every map of one angiogram: its picture, and where its highest values lie."""
    network = shipped()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    volumes = load_case(case, segmentation_task("TOF_MRA"), device)
    volume = VolumeNetwork(network.to(device), **running)
    with evaluating(network):
        logits = volume(volumes.image.as_subclass(Tensor))
    target = class_sum(logits, 1)
    label = label_of(volumes)
    areas = areas_of(label > 0, volumes.spacing_mm)
    found: dict[str, Any] = {
        "voxels": list(volumes.image.shape[2:]),
        "dice": round(float(foreground_dice(logits, label)), 3),
        "methods": {
            "all voxels": {"areas": dict.fromkeys(SHARES, means(areas))},
            "vessels": {"areas": dict.fromkeys(SHARES, means(areas, areas["vessels"]))},
        },
    }
    for name, options in methods.items():
        start = time.perf_counter()
        values = MetaTensor(make_attributor(name, network, **options)(volumes.image, target))
        seconds = round(time.perf_counter() - start, 1)
        notes = {key: value for key, value in values.meta["attribution"][0].items() if isinstance(value, float)}
        found["methods"][name] = {"areas": top_areas(values, areas), "seconds": seconds, **notes}
        if pictures:
            save_png(overlaid(volumes, values, name), IMAGES / f"vessel_{name}.png")
    for name, method in LAYERWISE.items():
        maps: dict[str, VoxelMap] = every_layer(method, network, volumes.image, target, **running)
        found[name] = {layer: {"areas": top_areas(values, areas)} for layer, values in maps.items()}
        if pictures:
            shown = {layer: plain(values) for layer, values in {**maps, "output": probabilities(logits)}.items()}
            x, y, z = volumes.spacing_mm
            grid = layer_grid(shown, (x, y, z), image=plain(volumes.image))
            save_png(grid, IMAGES / f"vessel_{name}.png")
    return found


def areas_of(vessels: Tensor, spacing_mm: Sequence[float]) -> dict[str, Tensor]:
    """Where a voxel may lie, bool ``(1, 1, *spatial)`` each; the first three share the volume out."""
    near = (distance_map(vessels, spacing_mm) >= -NEAR_MM) & ~vessels
    behind = torch.zeros_like(vessels)
    # The volume is in RAS order, so the second axis runs from back to front.
    behind[:, :, :, : vessels.shape[3] // 2] = True
    return dict(zip(AREAS, (vessels, near, ~vessels & ~near, behind), strict=True))


def top_areas(values: VoxelMap, areas: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    order = importance_order(values.as_subclass(Tensor))
    return {name: means(areas, top_share(order, share)) for name, share in SHARES.items()}


def means(areas: dict[str, Tensor], chosen: Tensor | None = None) -> dict[str, float]:
    """Which share of the chosen voxels lies in each area."""
    return {
        name: round(float((area if chosen is None else area[chosen]).float().mean()), 4) for name, area in areas.items()
    }


def overlaid(volumes: CaseVolumes, values: VoxelMap, name: str) -> NDArray[np.uint8]:
    """Projections and slices of a map in red over the file's own voxels, one sheet above the other."""
    scan = LoadImage(image_only=True, ensure_channel_first=True)(volumes.source)
    image, spacing_mm = to_canonical(*to_numpy(scan))
    shown = shares(to_canonical(*to_numpy(volumes.on_file_grid(values)))[0])
    label = f"{name}, share of its {WHITE:g}th percentile"
    look: dict[str, Any] = {"importance": shown, "style": "red", "label": label}
    ends = (image.shape[2] // 12, image.shape[2] - 1 - image.shape[2] // 12)
    sheets = [
        mips(image, spacing_mm, depth="any", **look),
        montage(image, spacing_mm, count=6, slices=ends, **look),
    ]
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets])


def plain(values: VoxelMap) -> NDArray[Any]:
    return values.as_subclass(Tensor)[0, 0].float().cpu().numpy()


def tables(result: dict[str, Any]) -> str:
    """Of the methods at every share, and of the layers at 1%."""
    head = ["volume", "highest values of"]
    for name in SHARES:
        head += [f"{name} on vessels", f"{name} within {NEAR_MM:g} mm", f"{name} behind the middle"]
    rows = []
    for volume, found in result["volumes"].items():
        for method, scores in found["methods"].items():
            cells = [scores["areas"][name][area] for name in SHARES for area in ("vessels", "near", "behind")]
            rows.append([volume, method, *(f"{100 * cell:.1f}%" for cell in cells)])
    layers = []
    for volume, found in result["volumes"].items():
        for layer in found["layer_guided_backprop"]:
            cells = [found[name][layer]["areas"]["1%"][area] for name in LAYERWISE for area in ("vessels", "near")]
            layers.append([volume, layer, *(f"{100 * cell:.1f}%" for cell in cells)])
    columns = [f"{name}, 1% {area}" for name in LAYERWISE for area in ("on vessels", f"within {NEAR_MM:g} mm")]
    return f"{markdown(head, rows)}\n{markdown(['volume', 'layer', *columns], layers)}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
