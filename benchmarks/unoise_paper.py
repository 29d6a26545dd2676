"""U-Noise's tables and figures (Koker et al. 2021) on real volumes of Task04, in 3D: sizes, pretraining, run time.

    python benchmarks/unoise_paper.py            # trains what is missing (40 minutes on 2 CPU cores), then measures
    python benchmarks/unoise_paper.py --train    # only the trainings; they go on where they were

Writes benchmarks/results/unoise_paper.json and docs/images/unoise_*.png, and prints the tables that docs/papers.md
quotes. All noise models learn against the shipped hippocampus utility, on its training cases, for the same epochs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from visibility import ROOT, TASK04, TRAIN, TRAIN_UTILITY, machine, run, task_of, total_seconds
from volumes import CaseVolumes, find_cases, load_case

from unoise_monai.attribution import GradCAM, Learned, Occlusion, foreground_sum, unperturbed_dice
from unoise_monai.handlers.savers import display_scale
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import Hiding, VisibilityScorer, bootstrap_mean
from unoise_monai.networks import UNet, load_state
from unoise_monai.render.canvas import (
    EDGE_LETTERS,
    bar_colours,
    blend,
    display_slice,
    figure_to_rgb,
    find_window,
    grey_levels,
    save_png,
)
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.panels import Panel, draw_panels
from unoise_monai.render.slices import PAPER_THRESHOLDS, decile_pictures
from unoise_monai.unoise import ExplainedSegmenter

IMAGES = ROOT / "docs" / "images"
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
HIDINGS = {"zero": Hiding("zero"), "noise": Hiding("noise", sigma=5.0)}
TRIALS = 10
BUNDLE = "hippocampus_mr_unoise"
SIZES = {"Small": (2, 4), "Medium": (3, 4), "Large": (4, 4)}
"""Depth and channel factor, Table 1."""
UTILITY = (4, 4)
"""Those of the shipped utility; the paper's has 5 and 6."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / TASK04)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "unoise_paper")
    parser.add_argument("--epochs", type=int, default=12, help="of each training; the paper has 100")
    parser.add_argument("--cases", type=int, help="validation cases; all by default")
    parser.add_argument("--train", action="store_true", help="train only")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve() / f"{arguments.epochs}_epochs"
    seconds = trainings(data, out, arguments.epochs)
    if arguments.train:
        return
    models = {name: segmenter(out / name / "model.pt", name.split("_")[0]) for name in seconds}
    chosen = find_cases(data, ROOT / "bundles" / BUNDLE / "models" / "split.json", "validation", choice=arguments.cases)
    task = task_of(BUNDLE)
    cases = [load_case(case, task, torch.device("cpu")) for case in chosen]
    result = {
        "command": " ".join(["python", "benchmarks/unoise_paper.py", *sys.argv[1:]]),
        "machine": machine(),
        "seed": 0,
        "epochs": arguments.epochs,
        "cases": len(cases),
        "parameters": {size: parameters(UNet(3, 1, 1, *shape)) for size, shape in SIZES.items()},
        "training_seconds": seconds,
        "dice": visibility(models, cases),
        "inference": times(models["Large_scratch"], cases[0]),
    }
    pictures(models, cases[:3])
    (ROOT / "benchmarks" / "results" / "unoise_paper.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(tables(result))


def segmenter(weights: Path, size: str) -> ExplainedSegmenter:
    """The shipped utility with one of the noise models trained here."""
    found = ExplainedSegmenter(UNet(3, 1, 3, *UTILITY), UNet(3, 1, 1, *SIZES[size]))
    found.load_state_dict(load_state(weights))
    return found.eval()


def parameters(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def visibility(models: dict[str, ExplainedSegmenter], cases: list[CaseVolumes]) -> dict[str, Any]:
    """Fig. 3a and 4: mean Dice at every share, hidden by zero and by noise, and its interval at half of the voxels."""
    curves: dict[str, Any] = {name: {operator: [] for operator in HIDINGS} for name in models}
    for case in cases:
        utility = VolumeNetwork(next(iter(models.values())).utility, precision="auto")
        for operator, hiding in HIDINGS.items():
            scorer = VisibilityScorer(utility, case.image, label_of(case), hiding)
            for name, model in models.items():
                importance = Learned.of(model, precision="auto")(case.image, lambda logits: logits.sum())
                curves[name][operator].append(scorer(importance.as_tensor(), SHARES).curve("dice").mean_score.tolist())
    summary: dict[str, Any] = {}
    for name, found in curves.items():
        summary[name] = {operator: np.mean(values, axis=0).round(4).tolist() for operator, values in found.items()}
        half = bootstrap_mean(np.array(found["zero"])[:, SHARES.index(0.5)])
        summary[name]["zero_at_half"] = [round(value, 4) for value in (half.mean, half.low, half.high)]
    for operator in HIDINGS:
        lines = {name.replace("_", ", "): (np.array(SHARES), np.array(summary[name][operator])) for name in models}
        save_png(plot_visibility(lines, f"hidden by {operator}"), IMAGES / f"unoise_visibility_{operator}.png")
    save_png(bars(summary), IMAGES / "unoise_sizes.png")
    return summary


def label_of(case: CaseVolumes) -> Tensor:
    if case.label is None:
        raise ValueError(f"{case.name} must have a label, got none")
    return case.label


def bars(summary: dict[str, Any]) -> np.ndarray:
    """Fig. 4: Dice of each size, from scratch and pretrained, at 10%, 20% and 50% visible."""
    figure = Figure(figsize=(7.5, 3.2), dpi=200, layout="constrained")
    for number, share in enumerate((0.1, 0.2, 0.5)):
        axes = figure.add_subplot(1, 3, number + 1)
        for shift, start, colour in ((-0.2, "scratch", "#0072b2"), (0.2, "pretrained", "#e69f00")):
            values = [summary[f"{size}_{start}"]["zero"][SHARES.index(share)] for size in SIZES]
            axes.bar(np.arange(len(SIZES)) + shift, values, 0.38, color=colour, label=start)
        axes.set_xticks(range(len(SIZES)), list(SIZES))
        axes.set(ylim=(0, 1), title=f"{share:.0%} visible", ylabel="Dice" if number == 0 else "")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure_to_rgb(figure)


def times(model: ExplainedSegmenter, case: CaseVolumes) -> dict[str, float]:
    """Table 2: seconds a map, one volume, mean of ten trials (of occlusion one: it takes thousands of passes)."""
    with torch.no_grad():
        logits = VolumeNetwork(model.utility)(case.image.as_tensor())
    target = foreground_sum(logits)
    options: dict[str, Any] = {"precision": "auto"}
    occlusion = Occlusion(model.utility, window=15, stride=2, **options)
    return {
        "U-Noise Large": seconds_of(lambda: Learned.of(model, **options)(case.image, target), TRIALS),
        "Grad-CAM": seconds_of(lambda: GradCAM(model.utility, **options)(case.image, target), TRIALS),
        "Occlusion sensitivity": seconds_of(lambda: occlusion(case.image, unperturbed_dice(logits, 1)), 1),
    }


def seconds_of(make: Callable[[], Any], trials: int) -> float:
    if trials > 1:
        make()
    start = time.perf_counter()
    for _ in range(trials):
        make()
    return round((time.perf_counter() - start) / trials, 4)


def pictures(models: dict[str, ExplainedSegmenter], cases: list[CaseVolumes]) -> None:
    """Fig. 2, a row a case: the image, U-Noise Large before its sigmoid, occlusion and Grad-CAM; and Fig. 3b."""
    model = models["Large_scratch"]
    panels = []
    for case in cases:
        image, label = case.image.as_tensor(), label_of(case)
        with torch.no_grad():
            logits = VolumeNetwork(model.utility)(image)
            tolerance = VolumeNetwork(model.noise_model)(image)
        target = foreground_sum(logits)
        maps = {
            "U-Noise Large": (-tolerance).clamp_min(0),
            "occlusion": Occlusion(model.utility, window=12, stride=4, precision="auto", sign="positive")(
                image, target
            ),
            "Grad-CAM": GradCAM(model.utility)(image, target),
        }
        grey = image[0, 0].numpy()
        index = int(label.sum(dim=(0, 1, 2, 3)).argmax())
        window = find_window(grey, None)
        scan = grey_levels(display_slice(grey, 2, index), window)
        outline = [display_slice((label[0, 0] > 0).numpy(), 2, index)]
        panels.append(Panel(blend(scan, None), case.name, outlines=outline))
        for name, values in maps.items():
            shown = display_scale(values.as_subclass(Tensor)[0, 0].numpy())
            panels.append(Panel(blend(scan, display_slice(shown, 2, index)), name, outlines=outline))
    sheet = draw_panels(panels, (1.0, 1.0), EDGE_LETTERS[2], bar_colours(), "share of the 99.9th percentile", 200, 200)
    save_png(sheet, IMAGES / "unoise_comparison.png")
    case = cases[0]
    importance = Learned.of(model)(case.image, lambda logits: logits.sum())
    steps = decile_pictures(
        case.image[0, 0].numpy(), importance[0, 0].numpy(), (1.0, 1.0, 1.0), thresholds=PAPER_THRESHOLDS
    )
    save_png(steps, IMAGES / "unoise_thresholds.png")


def tables(result: dict[str, Any]) -> str:
    """Table 1, Table 2 and the numbers of Fig. 3a and 4 as Markdown."""
    utility = parameters(UNet(3, 1, 3, *UTILITY))
    lines = ["| model | depth | channels | parameters (3D, 1 channel) |", "|---|---|---|---|"]
    dice = result["dice"]["Large_scratch"]["zero"][SHARES.index(1.0)]
    lines.append(f"| Utility (Dice {dice:.3f}) | {UTILITY[0]} | {2 ** UTILITY[1]} | {utility:,} |")
    for size, (depth, factor) in SIZES.items():
        lines.append(f"| U-Noise {size} | {depth} | {2**factor} | {result['parameters'][size]:,} |")
    lines += ["", "| method | seconds a map | training | parameters |", "|---|---|---|---|"]
    for name, seconds in result["inference"].items():
        own = name.startswith("U-Noise")
        training = f"{result['training_seconds']['Large_scratch'] / 60:.1f} min" if own else "-"
        count = result["parameters"]["Large"] if own else utility
        lines.append(f"| {name} | {seconds:.3g} | {training} | {count:,} |")
    for operator in HIDINGS:
        head = " | ".join(f"{share:.0%}" for share in SHARES)
        lines += ["", f"| hidden by {operator} | {head} |", f"|---|{'---|' * len(SHARES)}"]
        for name, found in result["dice"].items():
            values = " | ".join(f"{value:.3f}" for value in found[operator])
            lines.append(f"| {name.replace('_', ', ')} | {values} |")
    return "\n".join(lines) + "\n"


def trainings(data: Path, out: Path, epochs: int) -> dict[str, float]:
    """Train each size from scratch and from a segmentation network of its shape; seconds each.

    Large has the utility's own shape and starts from it, as the paper's do; the others from one trained here.
    """
    shipped = ROOT / "bundles" / BUNDLE / "models"
    common = {"dataset_dir": data, "split_file": shipped / "split.json", "val_interval": epochs}
    seconds = {}
    for size, (depth, factor) in SIZES.items():
        shape = {"depth": depth, "channel_factor": factor}
        first = out / f"{size}_segmentation"
        if size == "Large" and not finished(first, "utility"):
            first.mkdir(parents=True, exist_ok=True)
            whole = load_state(shipped / "model.pt")
            own = {name.removeprefix("utility."): value for name, value in whole.items() if name.startswith("utility.")}
            torch.save(own, first / "utility.pt")
        if not finished(first, "utility"):
            options = {f"utility#{key}": value for key, value in shape.items()}
            options |= {"ckpt_dir": first, "output_dir": first, "utility_epochs": epochs, **common}
            run(BUNDLE, "training", TRAIN_UTILITY, **options)
        for start in ("scratch", "pretrained"):
            folder = out / f"{size}_{start}"
            if not finished(folder, "model"):
                options = {f"noise_model#{key}": value for key, value in shape.items()}
                options |= {"ckpt_dir": folder, "output_dir": folder, "max_epochs": epochs, **common}
                options |= {"utility_weights": [str(shipped / "model.pt")]}
                options |= {"pretrained": first / "utility.pt"} if start == "pretrained" else {}
                run(BUNDLE, "training", TRAIN, **options)
            seconds[f"{size}_{start}"] = total_seconds(folder / "metrics.csv")
    return seconds


def finished(folder: Path, weights: str) -> bool:
    """Whether a training has ended: its running checkpoint is gone, its best weights are there."""
    return (folder / f"{weights}.pt").is_file() and not (folder / f"{weights}_last.pt").is_file()


if __name__ == "__main__":
    main()
