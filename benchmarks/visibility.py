"""Measures a bundle: utility Dice, Dice against the visible share, and the times of both trainings.

    python benchmarks/visibility.py hippocampus_mr_unoise            # both trainings and the evaluation, real volumes
    python benchmarks/visibility.py hippocampus_mr_unoise --shipped  # the shipped weights only
    python benchmarks/visibility.py pancreas_ct_unoise --shipped     # on phantoms that were not trained on
    python benchmarks/visibility.py vessel_tof_mra_unoise --shipped  # likewise

Writes benchmarks/results/<bundle>_<part>[_crops].json and prints the table that the docs quote.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from unoise_monai.data import SegmentationTask
from unoise_monai.phantoms import write_phantom_cohort

ROOT = Path(__file__).resolve().parents[1]
TASK04 = "Task04_Hippocampus"
REAL = {"hippocampus_mr_unoise": (ROOT / "data" / TASK04, ROOT.parent / "shared" / "data" / TASK04)}
PHANTOMS: dict[str, dict[str, Any]] = {
    "pancreas_ct_unoise": {"kind": "abdomen", "count": 21, "seed": 8},
    "vessel_tof_mra_unoise": {"kind": "vessels", "count": 11, "seed": 23},
}
TRAIN = ["configs/train.yaml"]
TRAIN_UTILITY = [*TRAIN, "configs/train_utility.yaml"]
"""What trains a noise model and a utility network, in a bundle's folder."""
SHARES = ("1%", "2%", "5%", "10%", "20%", "30%", "50%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir()))
    parser.add_argument("--data", type=Path, help="a Decathlon folder; the default is Task04 or phantoms")
    parser.add_argument("--out", type=Path, help="where the runs go")
    parser.add_argument("--part", default="validation", choices=("validation", "test"), help="which part to measure on")
    parser.add_argument("--crops", action="store_true", help="on volumes padded or cropped to the patch size")
    parser.add_argument("--shipped", action="store_true", help="measure the shipped weights, train nothing")
    arguments = parser.parse_args()
    out = (arguments.out or ROOT / "runs" / f"benchmark_{arguments.bundle}").resolve()
    data = arguments.data or next((path for path in REAL.get(arguments.bundle, ()) if path.is_dir()), None)
    changes: dict[str, object] = {}
    if data is None:
        if not arguments.shipped or arguments.bundle in REAL:
            parser.error("--data must name a Decathlon folder: no volumes of this bundle's task are here")
        data = out / "phantoms"
        if not (data / "dataset.json").is_file():
            write_phantom_cohort(data, **PHANTOMS[arguments.bundle])
        # All but one serve for validation: none of them was trained on.
        changes = {"split_file": out / "split.json", "validation_share": 0.95, "test_share": 0.0}
    changes["dataset_dir"] = data.resolve()

    configs = [*TRAIN, "configs/evaluate.yaml"]
    configs += [str(ROOT / "benchmarks" / "crops.yaml")] if arguments.crops else []
    seconds = {}
    if not arguments.shipped:
        changes["ckpt_dir"] = out / "models"
        trainings = (("train_utility", TRAIN_UTILITY, "utility"), ("train", TRAIN, "model"))
        for config, files, weights in trainings:
            # Started again after a break, the measurement goes on: what is trained stays trained.
            if not (out / "models" / f"{weights}.pt").is_file() or (out / "models" / f"{weights}_last.pt").is_file():
                run(arguments.bundle, "training", files, output_dir=out / config, **changes)
            seconds[config] = total_seconds(out / config / "metrics.csv")
    run(
        arguments.bundle,
        "run",
        configs,
        output_dir=out / "evaluation",
        part=arguments.part,
        **changes,
    )
    result = {
        "command": " ".join(["python", "benchmarks/visibility.py", *sys.argv[1:]]),
        "data": f"{data.name}, part {arguments.part}",
        "phantoms": PHANTOMS[arguments.bundle] if data == out / "phantoms" else None,
        "seed": 0,
        "machine": machine(),
        "weights": "shipped" if arguments.shipped else "trained in this run",
        "seconds": seconds,
        **json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8")),
    }
    name = f"{arguments.bundle}_{arguments.part}{'_crops' if arguments.crops else ''}"
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))


def run(bundle: str, run_id: str, configs: list[str], **changes: object) -> None:
    """Run a bundle's configurations by the command that its docs give, in the bundle's folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", repr(configs)]
    command += [f"--{key}={value}" for key, value in changes.items()]
    subprocess.run(command, cwd=ROOT / "bundles" / bundle, check=True)


def task_of(bundle: str) -> SegmentationTask:
    """The task that a bundle's configuration defines."""
    file = ROOT / "bundles" / bundle / "configs" / "inference.yaml"
    return ConfigParser(ConfigParser.load_config_file(file)).get_parsed_content("task")


def total_seconds(path: Path) -> float:
    """Training time, validation included, summed over the epochs."""
    with path.open() as file:
        return round(sum(float(row["seconds"]) for row in csv.DictReader(file)), 1)


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return f"{device}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(result: dict) -> str:
    curve = result["quantile"]
    clean = {key.removeprefix("dice_all_visible_"): value for key, value in curve.items() if "all_visible" in key}
    rows = [(f"utility Dice, {name}", f"{value:.3f}") for name, value in clean.items()]
    rows += [
        (f"Dice, top {share} visible", f"{curve[f'dice_at_{share}']:.3f}")
        for share in SHARES
        if f"dice_at_{share}" in curve
    ]
    rows += [("area under Dice against visible share", f"{curve['area']:.3f}")]
    rows += [(f"minutes, {name}.yaml", f"{value / 60:.1f}") for name, value in result["seconds"].items()]
    lines = [f"| {result['machine']} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
