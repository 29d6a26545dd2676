"""Draws the pictures of docs/rendering.md and of the bundles' pages, with the shipped weights, by `inference.yaml`.

    python benchmarks/gallery.py

Explains a real angiogram (chris_MRA, C. Rorden, CC BY-NC 4.0), the first validation case of Task04 (CC BY-SA 4.0), both
read from ../shared/data, and an oblique, left-handed phantom. Writes to docs/images and to the bundles' docs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import nibabel as nib
import numpy as np
import torch
from torch import nn
from vessels import REAL_THRESHOLD, shipped
from visibility import ROOT, machine, run, task_of

from unoise_monai.data import preprocessing
from unoise_monai.data.nifti import write_nifti
from unoise_monai.phantoms import abdomen_phantom
from unoise_monai.render import (
    PAPER_THRESHOLDS,
    decile_pictures,
    layer_grid,
    mips,
    montage,
    rotating_mip,
    save_animation,
    save_png,
    scale_map,
    slab_mips,
    to_canonical,
)

VESSELS = "vessel_tof_mra_unoise"
SHARED = ROOT.parent / "shared" / "data"
SCAN = SHARED / "tof_mra" / "chris_MRA.nii.gz"
IMAGES = ROOT / "docs" / "images"
TASK = task_of(VESSELS)
OUT = ROOT / "runs" / "gallery"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    hippocampus, pancreas = (ROOT / "bundles" / name for name in ("hippocampus_mr_unoise", "pancreas_ct_unoise"))
    first = json.loads((hippocampus / "models" / "split.json").read_text(encoding="utf-8"))["validation"][0]
    explained(hippocampus, SHARED / "Task04_Hippocampus" / "imagesTr" / f"{first}.nii.gz", ["montage.png", "mip.png"])
    phantom = abdomen_phantom(3, (120, 100, 60), (2.5, 3.0, 5.0), oblique_degrees=12, left_handed=True)
    write_nifti(OUT / "phantom.nii.gz", phantom.image, phantom.affine)
    explained(pancreas, OUT / "phantom.nii.gz", ["montage.png"], prefix="phantom_")
    case = explained(ROOT / "bundles" / VESSELS, SCAN, ["montage.png", "mip.png", "rotation.gif"])

    image, spacing_mm = canonical(SCAN)
    importance, _ = canonical(case.with_name(f"{case.name}_importance.nii.gz"))
    segmentation, _ = canonical(case.with_name(f"{case.name}_seg.nii.gz"))
    IMAGES.mkdir(exist_ok=True)
    # The importance that this network gives to background is 0.77: above it lies what differs.
    above = scale_map(importance, (0.8, 1.0))
    red = mips(image, spacing_mm, above, style="red", label="importance, 0.8 to 1 scaled to 0 to 1")
    save_png(red, IMAGES / "mip_red.png")
    save_png(mips(image, spacing_mm, segmentation=segmentation, slab_mm=20), IMAGES / "mip_slab.png")
    save_png(slab_mips(image, spacing_mm, slab_mm=13, importance=importance, threshold=0.8), IMAGES / "slabs.png")
    save_png(
        montage(image, spacing_mm, importance, segmentation, count=8, crop_mm=3, threshold=0.8), IMAGES / "montage.png"
    )
    thresholds = decile_pictures(image, importance, spacing_mm, thresholds=PAPER_THRESHOLDS, mip=True)
    save_png(thresholds, IMAGES / "thresholds.png")
    frames = rotating_mip(image, spacing_mm, frames=24, importance=importance, longest=320, threshold=0.8)
    save_animation(frames, IMAGES / "rotation.gif")
    save_png(layer_grid(activations(SCAN), spacing_mm=TASK.spacing_mm), IMAGES / "layers.png")
    means = {"vessels": importance[image > REAL_THRESHOLD].mean(), "background": importance[image == 0].mean()}
    result = {"command": "python benchmarks/gallery.py", "volume": SCAN.name, "machine": machine()}
    result["mean importance"] = {name: round(float(mean), 3) for name, mean in means.items()}
    (ROOT / "benchmarks" / "results" / "gallery.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def explained(bundle: Path, image: Path, pictures: list[str], prefix: str = "") -> Path:
    """Explain an image, copy its pictures to the bundle's docs, and say how the paths of its files begin."""
    kinds = [picture.split(".")[0] for picture in pictures]
    run(bundle.name, "run", ["configs/inference.yaml"], dataset_dir=image, output_dir=OUT, pictures=str(kinds))
    name = image.name.removesuffix(".nii.gz")
    for picture in pictures:
        copyfile(OUT / name / f"{name}_{picture}", bundle / "docs" / f"{prefix}{picture}")
    return OUT / name / name


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
