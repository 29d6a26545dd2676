"""Draws the pictures of docs/rendering.md and of the vessel bundle's page, from a real angiogram.

    python benchmarks/gallery.py

Reads ../shared/data/tof_mra/chris_MRA.nii.gz (C. Rorden, CC BY-NC 4.0) and explains it with the vessel bundle's shipped
weights by the command of the bundle's docs. Writes PNG and GIF to docs/images and to the bundle's docs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import nibabel as nib
import numpy as np
import torch
from torch import nn
from vessels import shipped
from visibility import ROOT, run

from unoise_monai.data import preprocessing, segmentation_task
from unoise_monai.render import (
    PAPER_THRESHOLDS,
    decile_pictures,
    layer_grid,
    mips,
    montage,
    rotating_mip,
    save_animation,
    save_png,
    slab_mips,
    to_canonical,
)

BUNDLE = "vessel_tof_mra_unoise"
SCAN = ROOT.parent / "shared" / "data" / "tof_mra" / "chris_MRA.nii.gz"
IMAGES = ROOT / "docs" / "images"
BUNDLE_DOCS = ROOT / "bundles" / BUNDLE / "docs"
TASK = segmentation_task("TOF_MRA")
OUT = ROOT / "runs" / "gallery"


def main() -> None:
    run(
        BUNDLE,
        "run",
        "configs/inference.yaml",
        dataset_dir=SCAN,
        output_dir=OUT,
        pictures="['montage','mip','rotation']",
    )
    case = OUT / "chris_MRA" / "chris_MRA"
    for picture in ("montage.png", "mip.png", "rotation.gif"):
        copyfile(f"{case}_{picture}", BUNDLE_DOCS / picture)

    image, spacing_mm = canonical(SCAN)
    importance, _ = canonical(Path(f"{case}_importance.nii.gz"))
    segmentation, _ = canonical(Path(f"{case}_seg.nii.gz"))
    IMAGES.mkdir(exist_ok=True)
    save_png(mips(image, spacing_mm, importance, style="red"), IMAGES / "mip_red.png")
    save_png(mips(image, spacing_mm, segmentation=segmentation, slab_mm=20), IMAGES / "mip_slab.png")
    save_png(slab_mips(image, spacing_mm, slab_mm=13, importance=importance), IMAGES / "slabs.png")
    save_png(montage(image, spacing_mm, importance, segmentation, count=8, crop_mm=3), IMAGES / "montage.png")
    thresholds = decile_pictures(image, importance, spacing_mm, thresholds=PAPER_THRESHOLDS, mip=True)
    save_png(thresholds, IMAGES / "thresholds.png")
    frames = rotating_mip(image, spacing_mm, frames=24, importance=importance, longest=320)
    save_animation(frames, IMAGES / "rotation.gif")
    save_png(layer_grid(activations(SCAN), spacing_mm=TASK.spacing_mm), IMAGES / "layers.png")


def activations(path: Path) -> dict[str, np.ndarray]:
    """The mean activation of every level of the utility, over its channels, and its output, on the network's grid."""
    network, maps = shipped(), {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            maps[name] = output[0].mean(dim=0).numpy()

        return hook

    for number, block in enumerate(network.encoder, 1):
        block.register_forward_hook(keep(f"encoder {number}"))
    for number, block in enumerate(network.decoder):
        block.register_forward_hook(keep(f"decoder {len(network.decoder) - number}"))
    image = preprocessing(TASK, with_label=False)({"case": path.name, "image": str(path)})["image"]
    # To the grid of the network, as TiledInferer does it.
    ends = [n for side in reversed(image.shape[1:]) for n in (0, -side % network.stride)]
    padded = nn.functional.pad(image.as_tensor()[None], ends, "replicate")
    with torch.no_grad():
        maps["output"] = network.eval()(padded)[0, 0].sigmoid().numpy()
    return maps


def canonical(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    volume = nib.load(path)
    return to_canonical(np.asarray(volume.dataobj), volume.affine)


if __name__ == "__main__":
    main()
