"""Measures attribution methods where the answer is known: on phantoms that the pancreas network was not trained on.

    python benchmarks/truth.py            # 6 phantoms
    python benchmarks/truth.py --cases 1  # a look

The target has the intensity and the calibre of the bowel loops, the distractors; only the landmarks tell them apart.
Average precision is that of ranking the target and its landmarks first. The top is as many voxels as target and
landmarks have. What lies within 6 mm of the target and means nothing else is told apart from the irrelevant rest. What
is explained is the network's own segmentation. Writes benchmarks/results/truth.json, and prints the table of
docs/papers.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from visibility import PHANTOMS, ROOT, machine
from volumes import CaseVolumes, find_cases, load_case

from unoise_monai.attribution.base import make_attributor
from unoise_monai.attribution.targets import Target, foreground_sum
from unoise_monai.data import SegmentationTask
from unoise_monai.data.cases import Item as Case
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.regions import average_precision, truth_scores
from unoise_monai.networks import load_state
from unoise_monai.networks.weights import evaluating
from unoise_monai.phantoms import Truth, write_phantom_cohort
from unoise_monai.types import LabelMap, Logits, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter

BUNDLE = "pancreas_ct_unoise"
SIZE = (80, 64, 64)
"""Of the phantoms' grid at 3 mm: the abdomen around its middle, with little of the air around it."""
CPU = torch.device("cpu")
BESIDE, REACH = 5, 2
"""What tissue without a meaning of its own is where it lies within so many voxels (6 mm) of the target."""
TISSUES = {
    int(Truth.TARGET): "target",
    BESIDE: "beside the target",
    int(Truth.LANDMARK): "landmark",
    int(Truth.DISTRACTOR): "distractor",
    int(Truth.IRRELEVANT): "irrelevant",
    int(Truth.OUTSIDE): "outside",
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "unoise": ("unoise", {}),
    "saliency": ("saliency", {}),
    "guided_backprop": ("guided_backprop", {}),
    "deconvolution": ("deconvolution", {}),
    "integrated_gradients from zero": ("integrated_gradients", {"steps": 24, "baseline": "zero"}),
    "integrated_gradients from minimum": ("integrated_gradients", {"steps": 24, "baseline": "minimum"}),
    "smooth_grad": ("smooth_grad", {"samples": 8}),
    "deep_lift from zero": ("deep_lift", {"baseline": "zero"}),
    "deep_lift from minimum": ("deep_lift", {"baseline": "minimum"}),
    "grad_cam": ("grad_cam", {}),
    "layer_cam": ("layer_cam", {}),
    "occlusion": ("occlusion", {"window": 16, "stride": 16}),
    "rise": ("rise", {"masks": 60, "cells": 5}),
    "edges": ("edges", {}),
    "intensity": ("intensity", {}),
    "random": ("random", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6, help="how many phantoms")
    arguments = parser.parse_args()
    segmenter, task = shipped(BUNDLE)
    scores = [measure(segmenter, task, case) for case in tqdm(phantoms(arguments.cases, SIZE))]
    rows = {method: over_cases([case[method] for case in scores]) for method in scores[0]}
    result = {
        "command": " ".join(["python", "benchmarks/truth.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": 0,
        "phantoms": {**PHANTOMS[BUNDLE], "count": arguments.cases, "size": SIZE},
        "target": "foreground_sum",
        "beside_voxels": REACH,
        "methods": METHODS,
        "mean_and_interval": {
            method: {name: numbers(interval) for name, interval in row.items()} for method, row in rows.items()
        },
    }
    path = ROOT / "benchmarks" / "results" / "truth.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(rows))


def shipped(bundle: str) -> tuple[ExplainedSegmenter, SegmentationTask]:
    """A bundle's shipped network and its task, as its own configuration makes them."""
    folder = ROOT / "bundles" / bundle
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.yaml")
    segmenter = parser.get_parsed_content("network_def")
    segmenter.load_state_dict(load_state(folder / "models" / "model.pt"))
    return segmenter.eval(), parser.get_parsed_content("task")


def phantoms(count: int, size: Sequence[int]) -> list[Case]:
    """Phantoms that the pancreas bundle was not trained on, the anatomies of `visibility.py` on a grid of this size."""
    chosen = {**PHANTOMS[BUNDLE], "count": count}
    name = f"{chosen['seed']}_{count}_{'x'.join(map(str, size))}"
    folder = ROOT / "runs" / "benchmark_attribution" / f"phantoms_{name}"
    if not (folder / "dataset.json").is_file():
        write_phantom_cohort(folder, size=size, **chosen)
    return find_cases(folder)


def truth_of(case: Case, volumes: CaseVolumes) -> LabelMap:
    """What every voxel of a phantom means, on the network's grid: `Truth`, or `BESIDE`."""
    image = Path(case["image"])
    truth = volumes.labels_from(image.parents[1] / "truthTr" / image.name)
    near = F.max_pool3d((truth == Truth.TARGET).float(), 2 * REACH + 1, stride=1, padding=REACH) > 0
    return truth.where(~near | (truth != Truth.IRRELEVANT), BESIDE)


def logits_of(segmenter: ExplainedSegmenter, image: Tensor) -> Logits:
    volume = VolumeNetwork(segmenter.utility, precision="auto")
    with evaluating(volume):
        return volume(image.as_subclass(Tensor))


def explain(
    method: tuple[str, dict[str, Any]], segmenter: ExplainedSegmenter, image: Tensor, target: Target
) -> VoxelMap:
    """The map of a method with its options, with the sign by which it ranks voxels."""
    name, options = method
    own = {"noise_model": segmenter.noise_model} if name == "unoise" else {}
    attributor = make_attributor(name, segmenter.utility, precision="auto", **options, **own)
    return attributor(image, target).as_subclass(Tensor)


def measure(segmenter: ExplainedSegmenter, task: SegmentationTask, case: Case) -> dict[str, dict[str, float]]:
    """The scores of every method on one phantom, and what a map that is the same everywhere would get."""
    volumes = load_case(case, task, CPU)
    truth = truth_of(case, volumes)
    target = foreground_sum(logits_of(segmenter, volumes.image))
    scores = {}
    for name, method in METHODS.items():
        importance = explain(method, segmenter, volumes.image, target)
        found = truth_scores(importance, truth, tissues=tuple(TISSUES))
        scores[name] = {
            "average_precision": float(found.average_precision),
            "average_precision_target": float(average_precision(importance, truth == Truth.TARGET)),
            **dict(zip(TISSUES.values(), found.top[0].tolist(), strict=True)),
        }
    shares = {tissue: float((truth == tissue).double().mean()) for tissue in TISSUES}
    scores["the same everywhere"] = {
        "average_precision": shares[Truth.TARGET] + shares[Truth.LANDMARK],
        "average_precision_target": shares[Truth.TARGET],
        **{TISSUES[tissue]: share for tissue, share in shares.items()},
    }
    return scores


def over_cases(scores: Sequence[dict[str, float]]) -> dict[str, Interval]:
    return {name: bootstrap_mean([case[name] for case in scores]) for name in scores[0]}


COLUMNS = ("target", "landmark", "beside the target", "distractor", "irrelevant", "outside")


def table(rows: dict[str, dict[str, Interval]]) -> str:
    """The methods, the most precise first, and where their top voxels lie."""
    lines = [f"| method | average precision | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for method, row in sorted(rows.items(), key=lambda entry: -entry[1]["average_precision"].mean):
        tops = " | ".join(f"{row[name].mean:.2f}" for name in COLUMNS)
        lines.append(f"| {method} | {text(row['average_precision'])} | {tops} |")
    return "\n".join(lines) + "\n"


def numbers(interval: Interval, digits: int = 4) -> list[float | None]:
    """Mean and bounds, as JSON takes them: None for what could not be told."""
    values = (interval.mean, interval.low, interval.high)
    return [None if value != value else float(f"{value:.{digits}g}") for value in values]


def text(interval: Interval, form: str = ".2f") -> str:
    if interval.low != interval.low:
        return f"{interval.mean:{form}}"
    return f"{interval.mean:{form}} ({interval.low:{form}}-{interval.high:{form}})"


if __name__ == "__main__":
    main()
