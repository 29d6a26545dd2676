"""U-Noise's tables and figures (Koker et al. 2021) on real volumes of Task04, in 3D: sizes, pretraining, run time.

    python benchmarks/unoise_paper.py            # trains what is missing (an hour on 2 CPU cores), then measures
    python benchmarks/unoise_paper.py --train    # only the trainings; they go on where they were

Writes benchmarks/results/unoise_paper.json and docs/images/unoise_*.png, and prints the tables that docs/papers.md
quotes. All noise models learn against the shipped hippocampus utility, on its training cases, for the same epochs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from visibility import ROOT, TASK04, machine, run, total_seconds

BUNDLE = "hippocampus_mr_unoise"
SIZES = {"Small": (2, 4), "Medium": (3, 4), "Large": (4, 4)}
"""Depth and channel factor, Table 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / TASK04)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "unoise_paper")
    parser.add_argument("--epochs", type=int, default=6, help="of each training; the paper has 100")
    parser.add_argument("--train", action="store_true", help="train only")
    arguments = parser.parse_args()
    seconds = trainings(arguments.data.resolve(), arguments.out.resolve(), arguments.epochs)
    if arguments.train:
        return
    print(json.dumps(seconds, indent=1), machine())


def trainings(data: Path, out: Path, epochs: int) -> dict[str, float]:
    """Train each size from scratch and from a segmentation network of its shape; seconds each."""
    shipped = ROOT / "bundles" / BUNDLE / "models"
    common = {"dataset_dir": data, "split_file": shipped / "split.json", "val_interval": epochs}
    seconds = {}
    for size, (depth, factor) in SIZES.items():
        shape = {"depth": depth, "channel_factor": factor}
        first = out / f"{size}_segmentation"
        if not finished(first, "utility"):
            options = {f"utility#{key}": value for key, value in shape.items()}
            options |= {"ckpt_dir": first, "output_dir": first, "utility_epochs": epochs, **common}
            run(BUNDLE, "training", "configs/train_utility.yaml", **options)
        for start in ("scratch", "pretrained"):
            folder = out / f"{size}_{start}"
            if not finished(folder, "model"):
                options = {f"noise_model#{key}": value for key, value in shape.items()}
                options |= {"ckpt_dir": folder, "output_dir": folder, "max_epochs": epochs, **common}
                options |= {"utility_weights": [str(shipped / "model.pt")]}
                options |= {"pretrained": first / "utility.pt"} if start == "pretrained" else {}
                run(BUNDLE, "training", "configs/train.yaml", **options)
            seconds[f"{size}_{start}"] = total_seconds(folder / "metrics.csv")
    return seconds


def finished(folder: Path, weights: str) -> bool:
    """Whether a training has ended: its running checkpoint is gone, its best weights are there."""
    return (folder / f"{weights}.pt").is_file() and not (folder / f"{weights}_last.pt").is_file()


if __name__ == "__main__":
    main()
