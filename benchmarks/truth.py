"""Measures attribution methods where the answer is known: on phantoms that the pancreas network was not trained on.

    python benchmarks/truth.py            # 8 phantoms
    python benchmarks/truth.py --cases 1  # a look

The target has the intensity and the calibre of the bowel loops, the distractors; only the landmarks tell them apart.
Average precision is that of ranking the target and its landmarks first. The top is as many voxels as target and
landmarks have. What is explained is the network's own segmentation. Writes benchmarks/results/truth.json and prints
the table that the docs quote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from organs import BUNDLE, CPU, SIZE, explain, logits_of, numbers, phantoms, shipped, text, truth_of
from tqdm import tqdm
from visibility import PHANTOMS, ROOT, machine

from unoise_monai import ExplainedSegmenter
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.data import SegmentationTask, Truth
from unoise_monai.data.decathlon import Case
from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.truth import average_precision, truth_scores
from unoise_monai.report.cases import load_case

METHODS: dict[str, dict[str, Any]] = {
    "unoise": {},
    "saliency": {},
    "guided_backprop": {},
    "deconvolution": {},
    "integrated_gradients": {"steps": 12},
    "smooth_grad": {"samples": 8},
    "deep_lift": {},
    "grad_cam": {},
    "layer_cam": {},
    "occlusion": {"window": 16, "stride": 16},
    "rise": {"masks": 60, "cells": 5},
    "edges": {},
    "intensity": {},
    "random": {},
}
TISSUES = (Truth.TARGET, Truth.LANDMARK, Truth.DISTRACTOR, Truth.IRRELEVANT, Truth.OUTSIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8, help="how many phantoms")
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
        "methods": METHODS,
        "mean_and_interval": {
            method: {name: numbers(interval) for name, interval in row.items()} for method, row in rows.items()
        },
    }
    path = ROOT / "benchmarks" / "results" / "truth.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(rows))


def measure(segmenter: ExplainedSegmenter, task: SegmentationTask, case: Case) -> dict[str, dict[str, float]]:
    """The scores of every method on one phantom, and what a map that is the same everywhere would get."""
    volumes = load_case(case, task, CPU)
    truth = truth_of(case, volumes)
    target = foreground_sum(logits_of(segmenter, volumes.image))
    scores = {}
    for method, options in METHODS.items():
        importance = explain(method, segmenter, volumes.image, target, **options)
        found = truth_scores(importance, truth)
        scores[method] = {
            "average_precision": float(found.average_precision),
            "average_precision_target": float(average_precision(importance, truth == Truth.TARGET)),
            **{tissue.name.lower(): float(found.top[0, found.tissues.index(tissue)]) for tissue in TISSUES},
        }
    shares = {tissue: float((truth == tissue).double().mean()) for tissue in TISSUES}
    scores["the same everywhere"] = {
        "average_precision": shares[Truth.TARGET] + shares[Truth.LANDMARK],
        "average_precision_target": shares[Truth.TARGET],
        **{tissue.name.lower(): share for tissue, share in shares.items()},
    }
    return scores


def over_cases(scores: Sequence[dict[str, float]]) -> dict[str, Interval]:
    return {name: bootstrap_mean([case[name] for case in scores]) for name in scores[0]}


def table(rows: dict[str, dict[str, Interval]]) -> str:
    """The methods, the most precise first."""
    names = [tissue.name.lower() for tissue in TISSUES]
    lines = [
        f"| method | average precision | of the target alone | {' | '.join(f'top: {name}' for name in names)} |",
        "|---" * (len(names) + 3) + "|",
    ]
    for method, row in sorted(rows.items(), key=lambda entry: -entry[1]["average_precision"].mean):
        precision = [text(row[name], ".3f") for name in ("average_precision", "average_precision_target")]
        lines.append(f"| {method} | {' | '.join(precision)} | {' | '.join(f'{row[n].mean:.1%}' for n in names)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
