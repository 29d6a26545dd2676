"""Follows the rounds of Bordes et al. 2018 on segmentations: where the regions lie, and what hiding them does.

    python benchmarks/iterative_paper.py            # 8 validation volumes of Task04, a class of each, and a phantom CT
    python benchmarks/iterative_paper.py --cases 1  # a look

In each round the region that the network looks at is hidden, too. Without and with fine-tuning of a copy on what is
left, the paper's future work. All rounds are made, also those after the class is found no more, where `IterativeROI`
stops by default. Task04 (CC BY-SA 4.0) is read from ../shared/data. Writes benchmarks/results/iterative_paper.json and
docs/images/iterative_rounds.png, and prints the table that the docs quote.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from visibility import REAL, ROOT, machine, task_of
from volumes import CaseVolumes, find_cases, load_case

from unoise_monai.attribution import class_sum
from unoise_monai.attribution.iterative import FineTuning, IterativeROI, Round
from unoise_monai.attribution.targets import ClassProbability
from unoise_monai.data.nifti import write_nifti
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.visibility import distance_map
from unoise_monai.networks import UNet
from unoise_monai.networks.weights import evaluating, load_utility
from unoise_monai.phantoms import Truth, abdomen_phantom
from unoise_monai.render import save_png
from unoise_monai.render.canvas import EDGE_LETTERS, blend, display_slice, find_window, grey_levels, pixel_mm
from unoise_monai.render.panels import Panel, draw_panels

HIPPOCAMPUS, PANCREAS = "hippocampus_mr_unoise", "pancreas_ct_unoise"
OUT = ROOT / "runs" / "iterative_paper"
PHANTOM_SEED = 31
NEAR_MM = 3.0
FOUND = 0.5
"""The probability below which the method stops by default."""
ROUNDS = 5
FINE_TUNINGS = {"no": None, "yes": FineTuning()}
FIGURES = ("voxels", "inside", "near", "landmarks", "label_hidden", "probability")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8, help="the first so many validation volumes")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    hippocampus = utility(HIPPOCAMPUS)
    for number, volumes in enumerate(validation_volumes(arguments.cases)):
        # The anterior and the posterior hippocampus in turn.
        label = 1 + number % 2
        unveiled = unveil(hippocampus, volumes, label)
        rows = rows_of(unveiled, hippocampus, volumes, label)
        results += [{"data": "Task04", **row} for row in rows]
        if number == 0:
            picture = rounds_picture(volumes, unveiled, label)
            save_png(picture, ROOT / "docs" / "images" / "iterative_rounds.png")
    pancreas = utility(PANCREAS)
    volumes = phantom()
    landmarks = volumes.labels_from(OUT / "phantom_truth.nii.gz") == Truth.LANDMARK
    rows = rows_of(unveil(pancreas, volumes, 1), pancreas, volumes, 1, landmarks)
    results += [{"data": "phantom CT", **row} for row in rows]
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/iterative_paper.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": 0,
        "phantom_seed": PHANTOM_SEED,
        "near_mm": NEAR_MM,
        "fine_tuning": repr(FINE_TUNINGS["yes"]),
        "means": summary(results),
        "cases": results,
    }
    path = ROOT / "benchmarks" / "results" / "iterative_paper.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result["means"]))


def utility(bundle: str) -> nn.Module:
    """The network of a bundle, with the shipped weights."""
    classes = task_of(bundle).num_classes
    network = UNet(spatial_dims=3, in_channels=1, out_channels=classes, depth=4, channel_factor=4)
    return load_utility(network, ROOT / "bundles" / bundle / "models" / "model.pt")


def validation_volumes(count: int) -> list[CaseVolumes]:
    """The first volumes of Task04 that no network was trained on."""
    data = next(path for path in REAL[HIPPOCAMPUS] if path.is_dir())
    split = ROOT / "bundles" / HIPPOCAMPUS / "models" / "split.json"
    task = task_of(HIPPOCAMPUS)
    cases = find_cases(data, split, "validation", choice=count)
    return [load_case(case, task, torch.device("cpu")) for case in cases]


def phantom() -> CaseVolumes:
    """A CT phantom of the bundle's patch size that the network was not trained on."""
    drawn = abdomen_phantom(PHANTOM_SEED, size=(64, 64, 64))
    paths = {part: OUT / f"phantom_{part}.nii.gz" for part in ("image", "label", "truth")}
    for part, path in paths.items():
        write_nifti(path, getattr(drawn, part), drawn.affine)
    case = {"case": "phantom", "image": str(paths["image"]), "label": str(paths["label"])}
    return load_case(case, task_of(PANCREAS), torch.device("cpu"))


def unveil(network: nn.Module, volumes: CaseVolumes, label: int) -> dict[str, tuple[list[Round], float]]:
    """The rounds of one class without and with fine-tuning, and the seconds that they took."""
    found = {}
    for name, fine_tune in FINE_TUNINGS.items():
        method = IterativeROI(network, max_rounds=ROUNDS, min_probability=0.0, fine_tune=fine_tune, precision="auto")
        start = time.perf_counter()
        rounds = method.rounds(volumes.image, label)
        found[name] = rounds, round(time.perf_counter() - start, 1)
    return found


def rows_of(
    unveiled: dict[str, tuple[list[Round], float]],
    network: nn.Module,
    volumes: CaseVolumes,
    label: int,
    landmarks: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Where each round's region lies, as shares of it, and what hiding it did."""
    inside = label_of(volumes) == label
    near = (distance_map(inside, volumes.spacing_mm) >= -NEAR_MM) & ~inside
    rows = []
    for name, (rounds, seconds) in unveiled.items():
        row: dict[str, Any] = {"case": volumes.name, "label": label, "fine_tuned": name, "seconds": seconds}
        # What chance would give.
        row["all"] = {"inside": share(inside), "near": share(near)}
        row["all"]["landmarks"] = None if landmarks is None else share(landmarks)
        row["rounds"] = []
        row["probability_before"] = round(clean_probability(network, volumes, label), 4)
        hidden = torch.zeros_like(inside)
        for each in rounds:
            hidden |= each.roi
            places = (None if place is None else share(place[each.roi]) for place in (inside, near, landmarks))
            values = (int(each.roi.sum()), *places, share(hidden[inside]), round(each.probability, 4))
            row["rounds"].append(dict(zip(FIGURES, values, strict=True)))
        rows.append(row)
    return rows


def label_of(volumes: CaseVolumes) -> Tensor:
    if volumes.label is None:
        raise ValueError(f"{volumes.name} must have a label, got none")
    return volumes.label


def clean_probability(network: nn.Module, volumes: CaseVolumes, label: int) -> float:
    """Of the class, over the voxels given to it, while nothing is hidden."""
    with evaluating(network):
        logits = VolumeNetwork(network, precision="auto")(volumes.image.as_subclass(Tensor))
    return ClassProbability.of(class_sum(logits, label), logits)(logits)


def share(mask: Tensor) -> float:
    return round(float(mask.float().mean()), 4)


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of every figure over the volumes and classes that had such a round."""
    rows = []
    for data, tuned in dict.fromkeys((row["data"], row["fine_tuned"]) for row in results):
        chosen = [row for row in results if (row["data"], row["fine_tuned"]) == (data, tuned)]
        before: dict[str, Any] = {"round": 0, "probability": mean(row["probability_before"] for row in chosen)}
        before |= {name: mean(row["all"][name] for row in chosen) for name in ("inside", "near", "landmarks")}
        before |= {"count": len(chosen), "found": sum(row["probability_before"] >= FOUND for row in chosen)}
        rows.append({"data": data, "fine_tuned": tuned, **before})
        for number in range(ROUNDS):
            there = [row["rounds"][number] for row in chosen if number < len(row["rounds"])]
            if there:
                figures = {name: mean(one[name] for one in there) for name in FIGURES}
                found = sum(one["probability"] >= FOUND for one in there)
                figures |= {"count": len(there), "found": found}
                rows.append({"data": data, "fine_tuned": tuned, "round": number + 1, **figures})
    return rows


def mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return round(float(np.mean(numbers)), 4) if numbers else None


def rounds_picture(
    volumes: CaseVolumes, unveiled: dict[str, tuple[list[Round], float]], label: int
) -> NDArray[np.uint8]:
    """A row without and one with fine-tuning: each round's region in red, earlier ones black, the label outlined."""
    image, truth = (volume.as_subclass(Tensor)[0, 0].numpy() for volume in (volumes.image, label_of(volumes)))
    inside = truth == label
    at = int(inside.sum(axis=(1, 2)).argmax())
    window = find_window(image)
    outline = display_slice(inside, 0, at)
    sheets = []
    for name, (rounds, _) in unveiled.items():
        hidden = np.zeros_like(inside)
        panels = []
        for number, each in enumerate(rounds, 1):
            roi = each.roi[0, 0].numpy()
            seen = np.where(display_slice(hidden, 0, at), 0, grey_levels(display_slice(image, 0, at), window))
            rgb = blend(seen, 0.6 * display_slice(roi, 0, at), style="red")
            tuned = "fine-tuned, " if name == "yes" else ""
            panels.append(Panel(rgb, f"{tuned}round {number}: p {each.probability:.2f}", [outline]))
            hidden |= roi
        x, y, z = volumes.spacing_mm
        spacing = pixel_mm((x, y, z), 0)
        sheets.append([draw_panels([panel], spacing, EDGE_LETTERS[0], longest=230, narrowest=215) for panel in panels])
    rows = [np.concatenate(row, axis=1) for row in sheets]
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "fine-tuned", "round", "region, voxels", "of it in the label", f"within {NEAR_MM:g} mm"]
    head += ["in landmarks", "label hidden so far", "probability after", f"at least {FOUND:g}"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        voxels = f"{row['voxels']:.0f}" if row["round"] else "(all)"
        shares = [percent(row.get(name)) for name in ("inside", "near", "landmarks", "label_hidden")]
        found = [f"{row['probability']:.2f}", f"{row['found']} of {row['count']}"]
        lines.append([row["data"], row["fine_tuned"], str(row["round"]), voxels, *shares, *found])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


if __name__ == "__main__":
    main()
