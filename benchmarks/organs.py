"""Measures which organs and tissues the shipped pancreas network looks at, on a real CT and where the answer is known.

    python benchmarks/organs.py              # the real CT, and 10 phantoms that were not trained on
    python benchmarks/organs.py --phantoms 3 # a look

The CT is ../shared/data/abdomen_ct (TotalSegmentator example data, CC BY 4.0), with 59 organs. The shipped weights are
trained on phantoms and find nothing of its pancreas, so what is explained is the mean logit of the pancreas over the
CT's own pancreas label; the learned map has no target. This shows the tool, nothing of anatomy. On the phantoms, what
is explained is the network's own segmentation. Writes benchmarks/results/organs.json, and prints the two tables of
docs/papers.md and, between them, the largest shares that its text names.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from truth import BUNDLE, CPU, REACH, SIZE, TISSUES, explain, logits_of, numbers, phantoms, shipped, text, truth_of
from visibility import PHANTOMS, ROOT, machine
from volumes import CaseVolumes, find_cases, load_case

from unoise_monai.attribution.targets import Region, foreground_sum
from unoise_monai.data import SegmentationTask
from unoise_monai.data.cases import Item as Case
from unoise_monai.metrics.bootstrap import Interval, bootstrap_difference
from unoise_monai.metrics.regions import RegionRow, region_importance, regions_over_cases
from unoise_monai.networks.weights import segmentation
from unoise_monai.unoise import ExplainedSegmenter

CT = ROOT.parent / "shared" / "data" / "abdomen_ct"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "unoise": ("unoise", {}),
    "saliency": ("saliency", {}),
    "deep_lift from zero": ("deep_lift", {"baseline": "zero"}),
    "deep_lift from minimum": ("deep_lift", {"baseline": "minimum"}),
    "edges": ("edges", {}),
}
"""Zero is 59.5 HU, soft tissue, which makes a contribution of all that is air or fat; the minimum is both. The last one
asks no network: what a map shows that only follows the image."""
LEAST_ML = 1.0
SHOWN = {
    "unoise": "learned map",
    "saliency": "gradient",
    "deep_lift from minimum": "DeepLIFT from the lowest intensity",
    "edges": "edges",
}
"""What the tables show, and what it is called there; the others are in the JSON."""
ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=10, help="how many")
    arguments = parser.parse_args()
    segmenter, task = shipped(BUNDLE)
    volumes = load_case(find_cases(CT)[0], task, CPU)
    found, organs = real_ct(segmenter, volumes)
    cases = phantoms(arguments.phantoms, SIZE)
    tissues, apart = on_phantoms(segmenter, task, cases)
    result = {
        "command": " ".join(["python", "benchmarks/organs.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": 0,
        "methods": METHODS,
        "beside_voxels": REACH,
        "ct": {**found, "least_ml": LEAST_ML, "regions": {name: as_lists(rows) for name, rows in organs.items()}},
        "phantoms": {
            **PHANTOMS[BUNDLE],
            "count": len(cases),
            "size": SIZE,
            "target": "foreground_sum",
            "regions": {name: as_lists(rows) for name, rows in tissues.items()},
            "landmark_minus_distractor": {name: asdict(interval) for name, interval in apart.items()},
        },
    }
    path = ROOT / "benchmarks" / "results" / "organs.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([organ_table(organs), share_lines(organs), tissue_table(tissues)]))


def real_ct(segmenter: ExplainedSegmenter, volumes: CaseVolumes) -> tuple[dict[str, Any], dict[str, list[RegionRow]]]:
    """What the network finds in the CT, and the importance of its organs by each method."""
    if volumes.label is None:
        raise ValueError(f"{volumes.name} must have a label, got none")
    logits = logits_of(segmenter, volumes.image)
    target = Region(volumes.label > 0, label=1)
    organ_names = json.loads((CT / "organs.json").read_text(encoding="utf-8"))
    organs = volumes.labels_from(CT / "organs_001.nii.gz")
    tables, means = {}, {}
    for name, method in METHODS.items():
        importance = explain(method, segmenter, volumes.image, target)
        tables[name] = region_importance(importance, organs, organ_names, volumes.spacing_mm)
        means[name] = float(f"{importance.mean():.4g}")
    segmented, labelled = segmentation(logits) > 0, volumes.label > 0
    found = {
        "case": volumes.name,
        "segmented_voxels": int(segmented.sum()),
        "pancreas_voxels": int(labelled.sum()),
        "in_both": int((segmented & labelled).sum()),
        # No ratio of a map in [0, 1] can be above 1 over its mean.
        "mean_importance": means,
        "reach_voxels": segmenter.utility.halo,
        "target": "mean logit of the pancreas over the pancreas label",
        "target_value": round(float(target(logits)), 3),
    }
    return found, tables


def on_phantoms(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cases: Sequence[Case]
) -> tuple[dict[str, list[RegionRow]], dict[str, Interval]]:
    """The importance of each tissue over cases, and by how much the landmarks' ratio exceeds the distractors'."""
    tables: dict[str, list[list[RegionRow]]] = {name: [] for name in METHODS}
    for case in cases:
        volumes = load_case(case, task, CPU)
        truth = truth_of(case, volumes)
        target = foreground_sum(logits_of(segmenter, volumes.image))
        for name, method in METHODS.items():
            importance = explain(method, segmenter, volumes.image, target)
            tables[name].append(region_importance(importance, truth, TISSUES, volumes.spacing_mm))
    apart = {}
    for name, rows in tables.items():
        first, second = ([ratio_of(case, tissue) for case in rows] for tissue in ("landmark", "distractor"))
        apart[name] = bootstrap_difference(first, second)
    return {name: regions_over_cases(rows) for name, rows in tables.items()}, apart


def ratio_of(rows: Sequence[RegionRow], name: str) -> float:
    return next(row.ratio.mean for row in rows if row.name == name)


def as_lists(rows: Sequence[RegionRow]) -> dict[str, dict[str, Any]]:
    """Regions by name: volume, and mean with interval of ratio and share."""
    return {
        row.name: {
            "volume_ml": round(row.volume_ml, 2),
            "volume_share": round(row.volume_share, 6),
            "ratio": numbers(row.ratio),
            "importance_share": numbers(row.importance_share),
            "blocks_or_cases": row.ratio.count,
        }
        for row in rows
    }


def organs_of(rows: Sequence[RegionRow]) -> list[RegionRow]:
    """The organs that are large enough to say something, the highest ratio first."""
    return [row for row in rows if row.volume_ml >= LEAST_ML and row.name != "elsewhere"]


def organ_table(tables: dict[str, list[RegionRow]]) -> str:
    """The organs that each method holds most important for their size, with their ratios."""
    titles = [f"{title} (no network)" if name == "edges" else title for name, title in SHOWN.items()]
    lines = [f"| rank | {' | '.join(titles)} |", "|---" * (len(SHOWN) + 1) + "|"]
    leaders = [organs_of(tables[name])[:ROWS] for name in SHOWN]
    for number, rows in enumerate(zip(*leaders, strict=True)):
        lines.append(f"| {number + 1} | {' | '.join(cell(row) for row in rows)} |")
    return "\n".join(lines) + "\n"


def share_lines(tables: dict[str, list[RegionRow]], count: int = 5) -> str:
    """Of each method, the organs that hold the largest share of the importance."""
    lines = []
    for name, title in SHOWN.items():
        rows = sorted(organs_of(tables[name]), key=lambda row: -row.importance_share.mean)[:count]
        shares = ", ".join(f"{plain(row.name)} {row.importance_share.mean:.1%}" for row in rows)
        lines.append(f"largest shares of the {title}: {shares}")
    return "\n".join(lines) + "\n"


def tissue_table(tables: dict[str, list[RegionRow]]) -> str:
    """The ratio of each tissue of the phantoms, by method."""
    titles = ["share of importance over share of volume", *SHOWN.values()]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for tissue in TISSUES.values():
        rows = [next(row for row in tables[name] if row.name == tissue) for name in SHOWN]
        lines.append(f"| {tissue} | {' | '.join(text(row.ratio) for row in rows)} |")
    return "\n".join(lines) + "\n"


def cell(row: RegionRow) -> str:
    return f"{plain(row.name)} {text(row.ratio, '.3g')}"


def plain(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    main()
