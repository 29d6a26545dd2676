"""Draws Fig. 2 to 5 of Chatterjee et al., ISMRM 2021, with the vessel bundle's network, and measures where maps look.

    python benchmarks/vessel_paper.py            # three methods and two layer-wise ones, on two angiograms
    python benchmarks/vessel_paper.py --steps 4  # a look: few steps of integrated gradients

The real angiogram is chris_MRA (C. Rorden, CC BY-NC 4.0), read from ../shared/data; its soft tissue is removed, and its
vessels are the voxels above 60. The other one is a phantom with its soft tissue. Measured is where the voxels of the
highest values lie: on vessels, within 3 mm of them, elsewhere, and behind the volume's middle. Writes
benchmarks/results/vessel_paper.json and docs/images/vessel_*.png, and prints the tables that the docs quote.
"""

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
from visibility import ROOT, machine, task_of
from volumes import CaseVolumes, load_case

from unoise_monai.attribution import class_sum
from unoise_monai.attribution.base import make_attributor
from unoise_monai.attribution.layer_methods import LayerGuidedActivation, LayerGuidedBackprop
from unoise_monai.attribution.layers import every_layer
from unoise_monai.data.cases import Item as Case
from unoise_monai.data.nifti import write_nifti
from unoise_monai.handlers.savers import to_numpy
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import foreground_dice
from unoise_monai.metrics.visibility import distance_map, importance_order, top_share
from unoise_monai.networks.weights import evaluating, probabilities
from unoise_monai.phantoms import vessel_phantom
from unoise_monai.render import layer_grid, mips, montage, save_png, scale_map, to_canonical
from unoise_monai.render.canvas import EDGE_LETTERS, blend, grey_levels, pixel_mm
from unoise_monai.render.mip import project
from unoise_monai.render.panels import Panel, draw_panels
from unoise_monai.types import VoxelMap

IMAGES = ROOT / "docs" / "images"
OUT = ROOT / "runs" / "vessel_paper"
PHANTOM_SEED = 31
NEAR_MM = 3.0
SHARES = {"0.1%": 0.001, "1%": 0.01, "5%": 0.05}
AREAS = ("vessels", "near", "elsewhere", "behind", "edge")
EDGE = 2
"""Voxels from the volume's sides that count as its edge."""
WHITE = 99.99
"""Percentile of a map that pictures show as 1: less than the vessels' share by far, so that these differ."""
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
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
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
    volumes = load_case(case, task_of("vessel_tof_mra_unoise"), device)
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
    maps: dict[str, VoxelMap] = {}
    for name, options in methods.items():
        start = time.perf_counter()
        maps[name] = values = MetaTensor(make_attributor(name, network, **options)(volumes.image, target))
        seconds = round(time.perf_counter() - start, 1)
        notes = {key: value for key, value in values.meta["attribution"][0].items() if isinstance(value, float)}
        found["methods"][name] = {"areas": top_areas(values, areas), "seconds": seconds, **notes}
        if pictures:
            save_png(overlaid(volumes, values, name), IMAGES / f"vessel_{name}.png")
    if not pictures:
        save_png(side_by_side(volumes, maps), IMAGES / f"vessel_{volumes.name}.png")
    for name, method in LAYERWISE.items():
        layers = every_layer(method, network, volumes.image, target, **running)
        found[name] = {layer: {"areas": top_areas(values, areas)} for layer, values in layers.items()}
        if pictures:
            shown = {layer: clipped(plain(values)) for layer, values in layers.items()}
            shown["output"] = plain(probabilities(logits))
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
    edge = torch.ones_like(vessels)
    edge[..., EDGE:-EDGE, EDGE:-EDGE, EDGE:-EDGE] = False
    return dict(zip(AREAS, (vessels, near, ~vessels & ~near, behind, edge), strict=True))


def top_areas(values: VoxelMap, areas: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Where the highest values lie, of those above 0: a map of fewer such voxels has no more to say."""
    magnitude = values.as_subclass(Tensor)
    order = importance_order(magnitude)
    return {name: means(areas, top_share(order, share) & (magnitude > 0)) for name, share in SHARES.items()}


def means(areas: dict[str, Tensor], chosen: Tensor | None = None) -> dict[str, float]:
    """Which share of the chosen voxels lies in each area."""
    return {
        name: round(float((area if chosen is None else area[chosen]).float().mean()), 4) for name, area in areas.items()
    }


def overlaid(volumes: CaseVolumes, values: VoxelMap, name: str) -> NDArray[np.uint8]:
    """Projections and slices of a map in red over the file's own voxels, one sheet above the other."""
    image, spacing_mm, shown = on_scan(volumes, values)
    label = f"{name}, share of its {WHITE:g}th percentile"
    look: dict[str, Any] = {"importance": shown, "style": "red", "label": label}
    ends = (image.shape[2] // 12, image.shape[2] - 1 - image.shape[2] // 12)
    sheets = [
        mips(image, spacing_mm, depth="any", **look),
        montage(image, spacing_mm, count=10, slices=ends, **look),
    ]
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets])


def side_by_side(volumes: CaseVolumes, maps: dict[str, VoxelMap]) -> NDArray[np.uint8]:
    """Axial projections of several maps in red, over that of the scan."""
    panels = []
    for name, values in maps.items():
        image, spacing_mm, shown = on_scan(volumes, values)
        rgb = blend(grey_levels(project(image, 2)), project(shown, 2), style="red")
        panels.append(Panel(rgb, name, pixel_mm=pixel_mm(spacing_mm, 2), letters=EDGE_LETTERS[2]))
    return draw_panels(panels, longest=460)


def on_scan(volumes: CaseVolumes, values: VoxelMap) -> tuple[NDArray[Any], tuple[float, float, float], NDArray[Any]]:
    """The file's own voxels, their size, and the map on them, 0 to 1."""
    scan = LoadImage(image_only=True, ensure_channel_first=True)(volumes.source)
    image, spacing_mm = to_canonical(*to_numpy(scan))
    voxels = to_canonical(*to_numpy(volumes.on_file_grid(values)))[0]
    return image, spacing_mm, scale_map(voxels, (0, float(np.percentile(voxels, WHITE))))


def clipped(values: NDArray[Any]) -> NDArray[Any]:
    """A map without what towers above all else, which would leave the rest of its panel black."""
    return np.minimum(values, np.percentile(values, WHITE))


def plain(values: VoxelMap) -> NDArray[Any]:
    return values.as_subclass(Tensor)[0, 0].float().cpu().numpy()


def tables(result: dict[str, Any]) -> str:
    """Of the methods at every share, and of the layers at 1%."""
    shown = [("0.1%", "vessels"), *(("1%", area) for area in ("vessels", "near", "behind")), ("5%", "vessels")]
    shown.append(("5%", "near"))
    words = {"vessels": "on vessels", "near": f"within {NEAR_MM:g} mm", "behind": "behind the middle"}
    words["edge"] = "at the edge"
    head = ["volume", "highest values of", *(f"{share}, {words[area]}" for share, area in shown)]
    rows = []
    for volume, found in result["volumes"].items():
        for method, scores in found["methods"].items():
            cells = [scores["areas"][share][area] for share, area in shown]
            rows.append([volume, method, *(f"{100 * cell:.1f}%" for cell in cells)])
    layers = []
    for volume, found in result["volumes"].items():
        for layer in found["layer_guided_backprop"]:
            tops = [found[name][layer]["areas"]["1%"] for name in LAYERWISE]
            cells = [top[area] for top in tops for area in ("vessels", "near", "edge")]
            layers.append([volume, layer, *(f"{100 * cell:.1f}%" for cell in cells)])
    columns = [f"{name}: {words[area]}" for name in LAYERWISE for area in ("vessels", "near", "edge")]
    return f"{markdown(head, rows)}\n{markdown(['volume', 'layer', *columns], layers)}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
