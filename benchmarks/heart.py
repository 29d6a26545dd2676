"""Trains the network that bundles/heart_mr_unoise explains: MONAI's own UNet on the Sunnybrook left ventricles.

    python benchmarks/heart.py ../shared/data/sunnybrook_lv runs/heart
    unoise fit monai.networks.nets:UNet ../shared/data/sunnybrook_lv bundles/heart_mr_unoise \
        --weights runs/heart/utility.pt --like runs/heart/like.yaml --split runs/heart/split.json --minutes 20

It writes ``utility.pt``, ``like.yaml`` and ``split.json``, split by patient.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

from unoise_monai.data.finding import find_labelled
from unoise_monai.data.reading import LoadCased
from unoise_monai.metrics.overlap import dice_per_class

NETWORK = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [16, 32, 64, 128],
    "strides": [[2, 2, 1], [2, 2, 1], [2, 2, 2]],
    "num_res_units": 2,
    "norm": "batch",
}
LIKE = {
    "network": NETWORK,
    "labels": ["background", "left ventricle"],
    "spacing_mm": [2.5, 2.5, 8.0],
    "intensities": "z-score",
    "patch_size": [96, 96, 8],
}
PATIENT = re.compile(r"(.*)_E[DS]")
"""A case is a patient's heart at the end of diastole or of systole."""


def split(names: list[str], seed: int = 0) -> dict[str, list[str]]:
    """A fifth of the patients for validation, a fifth for the test."""
    patients = sorted({match[1] for name in names if (match := PATIENT.fullmatch(name))})
    order = np.random.default_rng(seed).permutation(patients).tolist()
    fifth = len(order) // 5
    parts = {"validation": order[:fifth], "test": order[fifth : 2 * fifth], "training": order[2 * fifth :]}
    return {part: sorted(f"{each}_{phase}" for each in own for phase in ("ED", "ES")) for part, own in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=80)
    args = parser.parse_args()
    set_determinism(seed=0)
    items = {item["case"]: item for item in find_labelled(args.data)}
    parts = split(list(items))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "split.json").write_text(json.dumps({"seed": 0, **parts}, indent=1), encoding="utf-8")
    (args.output / "like.yaml").write_text(yaml.safe_dump(LIKE, sort_keys=False, default_flow_style=None), "utf-8")
    keys = ["image", "label"]
    reading = [
        LoadCased(keys, 2),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=LIKE["spacing_mm"], mode=["bilinear", "nearest"]),
        NormalizeIntensityd("image", channel_wise=True),
    ]
    augmenting = [
        SpatialPadd(keys, LIKE["patch_size"], mode=["edge", "constant"]),
        RandCropByPosNegLabeld(keys, "label", LIKE["patch_size"], pos=2, neg=1, num_samples=2),
        RandAffined(
            keys,
            prob=0.7,
            rotate_range=(0, 0, 0.5),
            scale_range=(0.2, 0.2, 0),
            mode=["bilinear", "nearest"],
            padding_mode="border",
        ),
        RandFlipd(keys, prob=0.3, spatial_axis=0),
        RandScaleIntensityd("image", factors=0.3, prob=0.7),
        RandShiftIntensityd("image", offsets=0.3, prob=0.7),
        RandGaussianNoised("image", prob=0.3, std=0.1),
    ]
    training = CacheDataset(
        [items[name] for name in parts["training"]],
        Compose([*reading, *augmenting, EnsureTyped(keys, track_meta=False)]),
    )
    validation = CacheDataset(
        [items[name] for name in parts["validation"]], Compose([*reading, EnsureTyped(keys, track_meta=False)])
    )
    network = UNet(**NETWORK)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-4)
    loader = DataLoader(training, batch_size=2, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, args.epochs * len(loader))
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    best, start = 0.0, time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
        if epoch % 5 and epoch < args.epochs:
            continue
        network.eval()
        dice = []
        for item in validation:
            image = item["image"][None]
            pad = [n for side in reversed(image.shape[2:]) for n in (0, -side % 8)]
            with torch.no_grad():
                logits = network(torch.nn.functional.pad(image, pad, "replicate"))
            found = logits.argmax(1)[(..., *(slice(side) for side in image.shape[2:]))]
            dice.append(dice_per_class(found, item["label"], 2)[0])
        mean = float(np.nanmean(dice))
        sys.stdout.write(f"epoch {epoch}: validation Dice {mean:.3f}, {time.perf_counter() - start:.0f} s\n")
        if mean > best:
            best = mean
            torch.save({"state_dict": network.state_dict(), "dice": best}, args.output / "utility.pt")


if __name__ == "__main__":
    main()
