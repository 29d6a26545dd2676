"""Measures the vessel bundle's utility: deformation-aware training against plain training, in one run.

    python benchmarks/vessels.py            # both trainings, on synthetic angiograms, and the measurement
    python benchmarks/vessels.py --shipped  # the shipped weights only

Both train on the same phantoms with the same seed for the same epochs. Dice is taken on phantoms that neither has seen
and, where it is there, on the real angiogram chris_MRA, against its voxels above 60 (its soft tissue is removed).
Writes benchmarks/results/vessels[_shipped].json and prints the table that the docs quote.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from visibility import ROOT, TRAIN_UTILITY, machine, run, task_of

from unoise_monai.data import list_cases, preprocessing
from unoise_monai.data.cases import Item as Case
from unoise_monai.data.nifti import write_nifti
from unoise_monai.inference import TiledInferer
from unoise_monai.metrics import foreground_dice
from unoise_monai.networks import UNet, UNetMSS, load_state
from unoise_monai.networks.weights import evaluating
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.unoise import ExplainedSegmenter

BUNDLE = "vessel_tof_mra_unoise"
CHANNELS = (8, 16, 32, 64, 128)
REAL = ROOT.parent / "shared" / "data" / "tof_mra" / "chris_MRA.nii.gz"
REAL_THRESHOLD = 60
STRIPPED_SHARE = 0.5
"""A phantom with more voxels than this at its lowest intensity has lost its soft tissue."""
RESAMPLES = 2000
TRAINING_SEED, HELD_OUT_SEED = 21, 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark_vessels", help="where the runs go")
    parser.add_argument("--count", type=int, default=48, help="phantoms for training and validation")
    parser.add_argument("--held-out", type=int, default=16, help="phantoms to measure on")
    parser.add_argument("--epochs", type=int, default=30, help="of each training")
    parser.add_argument("--shipped", action="store_true", help="measure the shipped weights, train nothing")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    held_out = cohort(out / "held_out", arguments.held_out, seed=HELD_OUT_SEED)
    networks, epochs, trained_on = {}, {}, None
    if arguments.shipped:
        networks["shipped"] = shipped()
    else:
        phantoms = cohort(out / "phantoms", arguments.count, seed=TRAINING_SEED)
        for name, aware in (("deformation_aware", True), ("plain", False)):
            models = out / name / "models"
            # Started again after a break, the measurement goes on: what is trained stays trained.
            if not (models / "utility.pt").is_file() or (models / "utility_last.pt").is_file():
                run(
                    BUNDLE,
                    "training",
                    TRAIN_UTILITY,
                    dataset_dir=phantoms,
                    ckpt_dir=models,
                    output_dir=out / name / "train",
                    split_file=out / "split.json",
                    test_share=0.0,
                    utility_epochs=arguments.epochs,
                    deformation_aware=aware,
                )
            trained_on = len(list_cases(phantoms))
            epochs[name] = len((out / name / "train" / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1
            networks[name] = utility(load_state(models / "utility.pt"))
    scores = {name: measure(network, list_cases(held_out)) for name, network in networks.items()}
    result = {
        "command": " ".join(["python", "benchmarks/vessels.py", *sys.argv[1:]]),
        # Of what was trained and measured, which an earlier call may have begun with other settings.
        "held_out_phantoms": {"count": len(list_cases(held_out)), "seed": HELD_OUT_SEED},
        "training_phantoms": {"count": trained_on, "seed": TRAINING_SEED},
        "seed": 0,
        "epochs": epochs,
        "machine": machine(),
        **{name: summary(values) for name, values in scores.items()},
    }
    for case in real_case(out):
        for name, network in networks.items():
            result[name][f"dice_{case['case']}"] = mean(measure(network, [case])["dice"])
    if not arguments.shipped:
        apart = np.subtract(scores["deformation_aware"]["dice"], scores["plain"]["dice"])
        result["deformation_aware_minus_plain"] = {
            "dice": round(float(apart.mean()), 4),
            "interval_95": interval(apart),
        }
    path = ROOT / "benchmarks" / "results" / f"vessels{'_shipped' if arguments.shipped else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def cohort(folder: Path, count: int, seed: int) -> Path:
    if not (folder / "dataset.json").is_file():
        write_phantom_cohort(folder, count=count, seed=seed, kind="vessels")
    return folder


def utility(state: dict[str, torch.Tensor]) -> UNetMSS:
    network = UNetMSS(spatial_dims=3, in_channels=1, out_channels=1, channels=CHANNELS)
    network.load_state_dict(state)
    return network


def shipped() -> UNetMSS:
    noise_model = UNet(spatial_dims=3, in_channels=1, out_channels=1, depth=3, channel_factor=4)
    network = UNetMSS(spatial_dims=3, in_channels=1, out_channels=1, channels=CHANNELS)
    segmenter = ExplainedSegmenter(utility=network, noise_model=noise_model)
    segmenter.load_state_dict(load_state(ROOT / "bundles" / BUNDLE / "models" / "model.pt"))
    return network


def measure(network: UNetMSS, cases: list[Case]) -> dict[str, list[float]]:
    """Dice of every case, and which of them have lost their soft tissue."""
    preprocess, inferer = preprocessing(task_of(BUNDLE)), TiledInferer()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores: dict[str, list[float]] = {"dice": [], "stripped": []}
    with evaluating(network.to(device)), torch.no_grad():
        for case in cases:
            item = preprocess(case)
            logits = inferer(item["image"][None].to(device), network)
            scores["dice"].append(float(foreground_dice(logits, item["label"][None].to(device))))
            lowest = (item["image"] == item["image"].min()).float().mean()
            scores["stripped"].append(float(lowest > STRIPPED_SHARE))
    return scores


def real_case(folder: Path) -> list[Case]:
    """The real angiogram with its bright voxels as the reference; none where it is not there."""
    if not REAL.is_file():
        return []
    image = nib.load(REAL)
    label = folder / "chris_MRA_above_60.nii.gz"
    write_nifti(label, (np.asarray(image.dataobj) > REAL_THRESHOLD).astype(np.uint8), image.affine)
    return [{"case": "chris_MRA", "image": str(REAL), "label": str(label)}]


def summary(scores: dict[str, list[float]]) -> dict[str, object]:
    dice, stripped = np.array(scores["dice"]), np.array(scores["stripped"], dtype=bool)
    return {
        "dice": round(float(dice.mean()), 4),
        "interval_95": interval(dice),
        "lowest": round(float(dice.min()), 4),
        "dice_soft_tissue_there": mean(dice[~stripped]),
        "dice_soft_tissue_removed": mean(dice[stripped]),
        "cases": [round(float(value), 4) for value in dice],
    }


def mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return round(float(np.mean(numbers)), 4) if numbers else None


def interval(values: np.ndarray) -> list[float]:
    """The bootstrap's 95% interval of the mean over the cases."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    return [round(float(edge), 4) for edge in np.percentile(draws, (2.5, 97.5))]


if __name__ == "__main__":
    main()
