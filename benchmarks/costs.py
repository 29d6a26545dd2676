"""What a map of each method costs: seconds, passes and peak memory on one real volume of Task04.

    OMP_NUM_THREADS=1 python benchmarks/costs.py   # four minutes, which it wants for itself

Writes benchmarks/results/costs.json and prints the table that docs/scoreboard.md quotes. Options are those of the
bundle's explain.yaml; precision is the machine's fast one.
"""

import argparse
import json
import sys

import torch
import yaml
from visibility import REAL, ROOT, machine, task_of
from volumes import find_cases, load_case

from unoise_monai.attribution import METHODS, border_mean, foreground_sum, make_attributor
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import measure_cost
from unoise_monai.networks import UNet, load_state
from unoise_monai.unoise import ExplainedSegmenter

BUNDLE = "hippocampus_mr_unoise"
QUICK_S = 2.0
"""Methods that take less are timed as the fastest of three."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bundle = ROOT / "bundles" / BUNDLE
    data = next(path for path in REAL[BUNDLE] if path.is_dir())
    case = find_cases(data, bundle / "models" / "split.json", "validation", choice=1)[0]
    image = load_case(case, task_of(BUNDLE), torch.device("cpu")).image
    segmenter = ExplainedSegmenter(UNet(3, 1, 3, depth=4, channel_factor=4), UNet(3, 1, 1, depth=3, channel_factor=4))
    segmenter.load_state_dict(load_state(bundle / "models" / "model.pt"))
    segmenter.eval()
    with torch.no_grad():
        logits = VolumeNetwork(segmenter.utility)(image.as_tensor())
    chosen = yaml.safe_load((bundle / "configs" / "explain.yaml").read_text(encoding="utf-8"))["options"]
    rows = {}
    for name in METHODS:
        options = {"precision": "auto", **chosen.get(name, {})}
        if name == "unoise":
            options["noise_model"] = segmenter.noise_model
        if name == "voxelwise_mean":
            options["max_voxels"] = 50
        target = border_mean(logits, 1) if name == "voxelwise_mean" else foreground_sum(logits)
        attributor = make_attributor(name, segmenter.utility, **options)
        attributor(image, target)
        seconds = []
        while len(seconds) < 3 and (not seconds or min(seconds) < QUICK_S):
            with measure_cost(attributor.network, image) as cost:
                attributor(image, target)
            seconds.append(cost.seconds)
        with measure_cost(attributor.network, image, memory=True) as watched:
            attributor(image, target)
        rows[name] = {
            "seconds": round(min(seconds), 3),
            "forward_passes": round(cost.forward_passes, 1),
            "backward_passes": round(cost.backward_passes, 1),
            "peak_gb": round((watched.peak_bytes or 0) / 1e9, 3),
        }
        sys.stderr.write(f"{name} {rows[name]}\n")
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/costs.py",
        "machine": machine(),
        "volume": list(image.shape[2:]),
        "padded": list(VolumeNetwork(segmenter.utility).pad(image).shape[2:]),
        "seed": 0,
        "options": chosen,
        "methods": rows,
    }
    (ROOT / "benchmarks" / "results" / "costs.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = ["| method | seconds | passes forward | back | peak GB |", "|---|---|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["seconds"]):
        lines.append("| " + " | ".join([name, *(f"{value:g}" for value in row.values())]) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
