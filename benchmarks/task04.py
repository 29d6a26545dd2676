"""Trains and measures the hippocampus bundle on real Task04 volumes: utility Dice, visibility curve, training times.

    python benchmarks/task04.py                # both trainings and the evaluation, about half an hour on two CPU cores
    python benchmarks/task04.py --shipped      # the evaluation of the shipped weights only

Writes benchmarks/results/task04.json and prints the table that docs quote.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "hippocampus_mr_unoise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "Task04_Hippocampus")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark_task04")
    parser.add_argument("--shipped", action="store_true", help="measure the shipped weights, train nothing")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    common = {"dataset_dir": arguments.data.resolve()}
    seconds = {}
    if not arguments.shipped:
        common["ckpt_dir"] = out / "models"
        for config in ("train_utility", "train"):
            bundle("training", f"configs/{config}.yaml", output_dir=out / config, **common)
            seconds[config] = total_seconds(out / config / "metrics.csv")
    overlay = "['configs/train.yaml','configs/evaluate.yaml']"
    bundle("run", overlay, output_dir=out / "evaluation", **common)
    figures = json.loads((out / "evaluation" / "evaluation.json").read_text())
    result = {
        "machine": machine(),
        "weights": "shipped" if arguments.shipped else "trained in this run",
        "seconds": seconds,
        **figures,
    }
    path = ROOT / "benchmarks" / "results" / "task04.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(result))


def bundle(run_id: str, config: str, **changes: object) -> None:
    """Run a bundle's configuration by the command that its docs give, in the bundle's folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config]
    command += [f"--{key}={value}" for key, value in changes.items()]
    subprocess.run(command, cwd=BUNDLE, check=True)


def total_seconds(path: Path) -> float:
    """Training time, validation included, summed over the epochs."""
    with path.open() as file:
        return round(sum(float(row["seconds"]) for row in csv.DictReader(file)), 1)


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return f"{device}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(result: dict) -> str:
    quantile = result["quantile"]
    rows = [
        (
            "utility Dice, anterior / posterior",
            f"{quantile['dice_last_level_anterior']:.3f} / {quantile['dice_last_level_posterior']:.3f}",
        ),
        *(
            (f"Dice with the top {share} visible", f"{quantile[f'dice_at_{share}']:.3f}")
            for share in ("10%", "20%", "30%", "50%")
        ),
        ("area under Dice against visible share", f"{quantile['area']:.3f}"),
        *((f"minutes, {name}", f"{value / 60:.1f}") for name, value in result["seconds"].items()),
    ]
    lines = [
        result["machine"],
        "",
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
