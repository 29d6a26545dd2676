"""Compares `unoise fit`'s route through an nnU-Net v2 with nnU-Net's own predictor, on the grids of the scans.

    python benchmarks/nnunet.py nnUNet_results/Dataset004_X/nnUNetTrainer__nnUNetPlans__3d_fullres \\
        nnUNet_raw/Dataset004_X --cases 10

Both predict with mirroring, for scans as they are, and for the same scans padded with zeros and given an oblique,
anisotropic, left-handed affine. Writes benchmarks/results/nnunet.json and prints it. Needs pip install nnunetv2.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.spatial.transform import Rotation

from unoise_monai.data.nifti import write_nifti
from unoise_monai.fit import NnUNetModel, load
from unoise_monai.fit.checking import explainer_of
from unoise_monai.inference import Explainer
from unoise_monai.metrics import dice_per_class
from unoise_monai.networks.outputs import ClassLogits

RESULT = Path(__file__).resolve().parent / "results" / "nnunet.json"
PADDING = ((5, 9), (0, 4), (7, 2))
SPACING_MM, DEGREES, ORIGIN_MM = (-1.5, 0.9, 1.2), (20, -15, 10), (11.0, -7.0, 3.0)


def skewed(scan: Path, folder: Path) -> Path:
    """The scan with zeros around it, and an oblique, anisotropic, left-handed affine."""
    rotation = Rotation.from_euler("xyz", DEGREES, degrees=True).as_matrix()
    affine = nib.affines.from_matvec(rotation * SPACING_MM, ORIGIN_MM)
    path = folder / f"oblique_{scan.name}"
    write_nifti(path, np.pad(nib.load(scan).get_fdata(dtype=np.float32), PADDING), affine)
    return path


def own_segmentation(predictor: nnUNetPredictor, scan: Path, folder: Path) -> Any:
    """What nnU-Net writes for a scan, as nibabel reads it."""
    files = predictor.plans_manager.image_reader_writer_class()
    segmentation = predictor.predict_single_npy_array(*files.read_images([str(scan)]))
    path = folder / f"nnunet_{scan.name}"
    files.write_seg(segmentation, str(path), files.read_images([str(scan)])[1])
    return nib.load(path)


def compared(explain: Explainer, predictor: nnUNetPredictor, scan: Path, folder: Path, classes: int) -> dict[str, Any]:
    """Dice of the two segmentations of a scan, and how far the importance lies from its grid."""
    start = time.perf_counter()
    found = explain(scan)
    seconds = time.perf_counter() - start
    theirs, source = own_segmentation(predictor, scan, folder), nib.load(scan)
    voxels = np.asarray(theirs.dataobj).astype(np.int64)
    ours = found.segmentation[0].numpy()
    return {
        "scan": scan.name,
        "dice": [round(value, 6) for value in dice_per_class(ours, voxels, classes)],
        "voxels that differ": int((ours != voxels).sum()),
        "same shape": found.importance.shape[1:] == source.shape == theirs.shape,
        "affine apart": float(np.abs(found.importance.affine.numpy() - source.affine).max()),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder with plans.json and fold_0")
    parser.add_argument("raw", type=Path, help="the dataset's folder, of one channel, with imagesTr or imagesTs")
    parser.add_argument("--cases", type=int, default=10, help="scans, evenly chosen (%(default)s)")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--images", default="imagesTr", help="folder of scans (%(default)s)")
    arguments = parser.parse_args()
    trained = load(arguments.results, fold=arguments.fold)
    model = trained.model
    if not isinstance(model, NnUNetModel):
        raise ValueError(f"results must be nnU-Net's, got {arguments.results}")
    utility = ClassLogits(trained.network, "sigmoid" if model.regions else "softmax", labels=model.region_labels)
    explain = explainer_of(trained, utility)
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    folds = (arguments.fold,)
    predictor.initialize_from_trained_model_folder(str(arguments.results), folds, model.weights().name)
    scans = sorted((arguments.raw / arguments.images).glob("*_0000.nii.gz"))
    chosen = [scans[index] for index in np.linspace(0, len(scans) - 1, min(arguments.cases, len(scans))).astype(int)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {"as they are": chosen, "padded and oblique": [skewed(scan, folder) for scan in chosen]}
        rows = {
            kind: [compared(explain, predictor, scan, folder, len(model.class_names)) for scan in paths]
            for kind, paths in kinds.items()
        }
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/nnunet.py", *(Path(each).name for each in sys.argv[1:])]),
        "versions": {each: version(each) for each in ("nnunetv2", "torch", "monai")},
        "hardware": f"{torch.get_num_threads()} threads, {platform.machine()}",
        "weights": model.weights().name,
        "mirrored axes": list(model.mirrored_axes),
    }
    for kind, results in rows.items():
        dice = np.array([row["dice"] for row in results])
        found[kind] = {
            "scans": len(results),
            "mean dice": round(float(np.nanmean(dice)), 6),
            "least dice": round(float(np.nanmin(dice)), 6),
            "all on the scan's grid": all(row["same shape"] and row["affine apart"] < 1e-5 for row in results),
        }
    RESULT.write_text(json.dumps({**found, "scans": rows}, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
