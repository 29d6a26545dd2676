"""Measures what Fazel et al. measured of explanations of a U-Net, in 3D, on MR and on CT: infidelity and sensitivity.

    python benchmarks/polyp_paper.py            # 10 validation volumes of Task04, 10 phantoms that were not trained on
    python benchmarks/polyp_paper.py --cases 1  # a look

"Interpretability of U-Net model in the segmentation of medical images": their Tables II and V compare guided
backpropagation, Guided Grad-CAM and DeepLIFT, Tables III and VI Grad-CAM and DeepLIFT of layers, by infidelity (Eq. 3)
for the mean over the segment's border. Here twice: plainly, as the paper has it, with each map as it is; and on the
same footing, each map at its best scale, contributions per intensity, relative to the score's own changes. The paper
gives no perturbation: small noise, large noise and noise in a box. Eq. 4, sensitivity, is defined there, not measured.
The border's score is a logit here and a probability there. Writes benchmarks/results/polyp_paper.json, and prints the
table of docs/papers.md and, for each data set, all figures.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

import captum.metrics
import torch
from torch import Tensor
from tqdm import tqdm
from truth import CPU, numbers, phantoms, shipped, text
from visibility import PHANTOMS, REAL, ROOT, machine
from volumes import find_cases, load_case

from unoise_monai.attribution.base import Attributor, Score, make_attributor
from unoise_monai.attribution.layers import find_layers
from unoise_monai.attribution.targets import border_mean
from unoise_monai.data.cases import Item as Case
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from unoise_monai.metrics.faithfulness import GaussianPerturbation, infidelities, max_sensitivity
from unoise_monai.metrics.scores import per_intensity
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter

MR, CT = "hippocampus_mr_unoise", "pancreas_ct_unoise"
SIZE = (56, 40, 40)
"""Of the phantoms' grid at 3 mm: the middle of the abdomen."""
LABEL = 1
"""Whose border is explained: the anterior hippocampus, the phantoms' target."""
PAPER = ("guided_backprop", "guided_grad_cam", "deep_lift")
LAYER_METHODS = ("layer_grad_cam", "layer_deep_lift")
CONTROLS = ("guided_backprop / 10", "saliency", "border", "random", "zeros")
"""A map in another unit, the gradient, the target's place alone, a map of no place, and one that says nothing."""
ALL_LAYERS = "all layers"
QUOTED = {
    "guided_backprop": "guided backpropagation",
    "guided_grad_cam": "Guided Grad-CAM",
    "deep_lift": "DeepLIFT",
    "saliency": "gradient",
    "border": "the border's place (no network)",
    "random": "random map",
    "zeros": "a map of zeros",
    "guided_backprop / 10": "guided backpropagation, divided by 10",
    f"layer_grad_cam {ALL_LAYERS}": "layers: Grad-CAM, mean of 7",
    f"layer_deep_lift {ALL_LAYERS}": "layers: DeepLIFT, mean of 7",
}
"""The rows of the docs' table, and what they are called there."""
RADIUS, SENSITIVITY_SAMPLES, SENSITIVITY_CASES, SEED = 0.05, 2, 4, 0

Scores = dict[str, dict[str, float]]


class Setting(NamedTuple):
    """How images are perturbed."""

    sigma: float
    box: int | None
    samples: int
    precision: str


SETTINGS = {
    # What so little noise changes is lost in bf16.
    "noise 0.01": Setting(0.01, None, 24, "fp32"),
    "noise 0.5": Setting(0.5, None, 24, "auto"),
    "boxes 0.5": Setting(0.5, 8, 64, "auto"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10, help="of each data set")
    arguments = parser.parse_args()
    split = ROOT / "bundles" / MR / "models" / "split.json"
    data = next(path for path in REAL[MR] if path.is_dir())
    chosen = {
        MR: find_cases(data, split, "validation", choice=arguments.cases),
        CT: phantoms(arguments.cases, SIZE),
    }
    result = {
        "command": " ".join(["python", "benchmarks/polyp_paper.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": SEED,
        "settings": {name: setting._asdict() for name, setting in SETTINGS.items()},
        "sensitivity": {"radius": RADIUS, "samples": SENSITIVITY_SAMPLES, "cases": SENSITIVITY_CASES},
        "phantoms": {**PHANTOMS[CT], "count": len(chosen[CT]), "size": SIZE},
    }
    tables, quoted = [], {}
    for bundle, cases in chosen.items():
        scores = [measure(bundle, case, number < SENSITIVITY_CASES) for number, case in enumerate(tqdm(cases))]
        rows = {row: {name: over_cases(scores, row, name) for name in scores[0][row]} for row in scores[0]}
        result[bundle] = {
            "cases": [case["case"] for case in cases],
            "mean_and_interval": {row: {name: numbers(one) for name, one in of.items()} for row, of in rows.items()},
            "differences": differences(scores),
            "layers_where_grad_cam_is_below_deep_lift": wins(rows),
        }
        quoted[bundle] = rows
        tables += [f"{bundle}\n", model_table(rows), layer_table(rows)]
        tables += [f"Grad-CAM below DeepLIFT by {name}: {count} layers" for name, count in wins(rows).items()]
    path = ROOT / "benchmarks" / "results" / "polyp_paper.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([quoted_table(quoted), *tables]) + "\n")


def measure(bundle: str, case: Case, sensitivity: bool) -> Scores:
    """Every figure of every map of one case; a layer's map is named ``method layer``."""
    segmenter, task = shipped(bundle)
    image = load_case(case, task, CPU).image.as_subclass(Tensor)
    volumes = {name: VolumeNetwork(segmenter.utility, precision=name) for name in ("fp32", "auto")}
    with evaluating(volumes["fp32"]):
        target = border_mean(volumes["fp32"](image), LABEL)
    attributors = methods(segmenter, image)
    maps = {name: attributor(image, target).as_subclass(Tensor) for name, attributor in attributors.items()}
    maps["guided_backprop / 10"] = maps["guided_backprop"] / 10
    maps["border"] = target.mask.float()
    maps["zeros"] = torch.zeros_like(image)
    # What is a contribution becomes a change per intensity, which a layer's values cannot.
    footing = {
        name: per_intensity(values, image, attributors[name])
        if name in attributors and attributors[name].contributes
        else values
        for name, values in maps.items()
    }
    scores: Scores = {name: {} for name in maps}
    for name, setting in SETTINGS.items():
        score = Remembering(Score(volumes[setting.precision], target))
        for row, values in plain_infidelities(score, image, maps, setting).items():
            scores[row][f"plain, {name}"] = values
        held = infidelities(
            score, image, footing, setting.sigma, setting.samples, generator=generator(), box=setting.box
        )
        for row, found in held.items():
            scores[row][f"unexplained, {name}"] = float(found.unexplained)
    for name, attributor in attributors.items():
        scores[name]["sensitivity"] = (
            float(max_sensitivity(attributor, image, target, RADIUS, SENSITIVITY_SAMPLES, generator=generator()))
            if sensitivity
            else math.nan
        )
    for method in LAYER_METHODS:
        layers = [scores[row] for row in scores if row.startswith(f"{method} ")]
        means = {name: sum(layer[name] for layer in layers) / len(layers) for name in layers[0]}
        scores[f"{method} {ALL_LAYERS}"] = means
    return scores


def methods(segmenter: ExplainedSegmenter, image: Image) -> dict[str, Attributor]:
    """The paper's methods and the controls, with their signs."""
    utility = segmenter.utility
    found = {name: make_attributor(name, utility, sign="signed") for name in (*PAPER, "saliency", "random")}
    for method in LAYER_METHODS:
        for layer in find_layers(utility, image):
            # In bf16, as a layer's maps in either number format correlate by more than 0.999.
            found[f"{method} {layer}"] = make_attributor(method, utility, layer=layer, sign="signed", precision="auto")
    return found


class Remembering:
    """A score that runs the network once for each image, however many maps are held against it."""

    def __init__(self, score: Callable[[Image], Tensor]) -> None:
        self.score = score
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, images: Image) -> Tensor:
        key = images.numpy().tobytes()
        if key not in self.known:
            with torch.no_grad():
                self.known[key] = self.score(images).double()
        return self.known[key]


def plain_infidelities(
    score: Remembering, image: Image, maps: dict[str, VoxelMap], setting: Setting
) -> dict[str, float]:
    """Captum's infidelity of maps as they are, in the score's unit squared, for the perturbations of `infidelities`."""
    found = {}
    for name, values in maps.items():
        perturb = GaussianPerturbation(1, setting.sigma, generator(), setting.box)
        found[name] = float(
            captum.metrics.infidelity(
                score, perturb, image, values.double(), n_perturb_samples=setting.samples, max_examples_per_batch=1
            )
        )
    return found


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def over_cases(scores: Sequence[Scores], row: str, name: str) -> Interval:
    return bootstrap_mean([case[row][name] for case in scores])


def differences(scores: Sequence[Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """The paper's comparisons, case by case: below 0 speaks for the first."""
    pairs = [("guided_grad_cam", "guided_backprop"), ("guided_grad_cam", "deep_lift"), ("guided_grad_cam", "zeros")]
    pairs += [(f"{LAYER_METHODS[0]} {ALL_LAYERS}", f"{LAYER_METHODS[1]} {ALL_LAYERS}")]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for first, second in pairs:
        both = [name for name in scores[0][first] if name in scores[0][second]]
        found[f"{first} - {second}"] = {
            name: asdict(bootstrap_difference([c[first][name] for c in scores], [c[second][name] for c in scores]))
            for name in both
        }
    return found


def quoted_table(tables: dict[str, dict[str, dict[str, Interval]]]) -> str:
    """The docs' table: both footings of both data sets, under noise in boxes."""
    heads = [f"{name}, {footing}" for name in ("MR", "CT") for footing in ("plain", "same footing")]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row, title in QUOTED.items():
        cells = []
        for bundle in (MR, CT):
            figures = tables[bundle][row]
            plain, unexplained = figures["plain, boxes 0.5"].mean, figures["unexplained, boxes 0.5"].mean
            cells += [f"{plain:.3g}", f"{unexplained:.2f}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def model_table(rows: dict[str, dict[str, Interval]]) -> str:
    columns = [f"{kind}, {name}" for kind in ("plain", "unexplained") for name in SETTINGS] + ["sensitivity"]
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in (*PAPER, *CONTROLS):
        lines.append(f"| {row} | {' | '.join(cell(rows[row], name) for name in columns)} |")
    return "\n".join(lines) + "\n"


def layer_table(rows: dict[str, dict[str, Interval]]) -> str:
    chosen = [f"{kind}, {name}" for kind in ("plain", "unexplained") for name in ("noise 0.01", "boxes 0.5")]
    columns = [(name, method) for name in (*chosen, "sensitivity") for method in LAYER_METHODS]
    heads = [f"{name}: {method.removeprefix('layer_')}" for name, method in columns]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    layers = [row.removeprefix(f"{LAYER_METHODS[0]} ") for row in rows if row.startswith(f"{LAYER_METHODS[0]} ")]
    for layer in layers:
        cells = [cell(rows[f"{method} {layer}"], name, layer == ALL_LAYERS) for name, method in columns]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wins(rows: dict[str, dict[str, Interval]]) -> dict[str, str]:
    """In how many layers Grad-CAM's mean is below DeepLIFT's, by figure."""
    first, second = LAYER_METHODS
    layers = [row.removeprefix(f"{first} ") for row in rows if row.startswith(f"{first} ") and ALL_LAYERS not in row]
    found = {}
    for name in rows[f"{first} {ALL_LAYERS}"]:
        better = [x for x in layers if rows[f"{first} {x}"][name].mean < rows[f"{second} {x}"][name].mean]
        found[name] = f"{len(better)} of {len(layers)}"
    return found


def cell(row: dict[str, Interval], name: str, interval: bool = True) -> str:
    if name not in row:
        return ""
    form = ".2g" if name.startswith("plain") else ".2f"
    return text(row[name], form) if interval else f"{row[name].mean:{form}}"


if __name__ == "__main__":
    main()
