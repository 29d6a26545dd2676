"""Networks as people have them, trained briefly, then explained by ``unoise fit``: the table of docs/own-model.md.

    python benchmarks/own_models.py ../shared/data/Task04_Hippocampus runs/own_models --kinds zoo,segresnet,dynunet

Each kind comes in another form: MONAI's UNet as a bundle of the model zoo's form, SegResNet as a Python class with a
checkpoint of PyTorch Lightning's form, DynUNet with deep supervision as TorchScript, SwinUNETR (needs einops) as a
program of torch.export.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.networks import nets
from monai.utils import set_determinism
from torch import nn

from unoise_monai.data.finding import find_labelled
from unoise_monai.data.transforms import training_transforms
from unoise_monai.fit import DescribedModel, TrainedModel, fit, load

LIKE = {
    "labels": ["background", "anterior", "posterior"],
    "spacing_mm": [1.0, 1.0, 1.0],
    "intensities": "z-score of the foreground",
    "patch_size": [32, 48, 32],
}
SIZES: dict[str, dict[str, Any]] = {
    "zoo": {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [16, 32, 64, 128, 256],
        "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch",
    },
    "segresnet": {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "out_channels": 3},
    "dynunet": {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2],
        "upsample_kernel_size": [2, 2, 2], "filters": [16, 32, 64, 96], "deep_supervision": False,
    },
    "swinunetr": {"in_channels": 1, "out_channels": 3, "feature_size": 12},
}  # fmt: skip
CLASSES = {"zoo": "UNet", "segresnet": "SegResNet", "dynunet": "DynUNet", "swinunetr": "SwinUNETR"}


def trained(kind: str, data: Path, folder: Path, minutes: float) -> nn.Module:
    """A network, trained for some minutes on the first 40 labelled cases."""
    set_determinism(seed=0)
    network: nn.Module = getattr(nets, CLASSES[kind])(**SIZES[kind])
    chain = training_transforms(DescribedModel(folder).preprocessing(with_label=True), LIKE["patch_size"], samples=2)
    loader = DataLoader(CacheDataset(find_labelled(data)[:40], chain, progress=False), batch_size=2, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for batch in loader:
            optimizer.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
    return network.eval()


def as_zoo_bundle(network: nn.Module, folder: Path) -> TrainedModel:
    """In the form of the zoo's spleen_ct_segmentation."""
    bundle = folder / "hippocampus_segmentation"
    (bundle / "configs").mkdir(parents=True, exist_ok=True)
    (bundle / "models").mkdir(exist_ok=True)
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": LIKE["spacing_mm"], "mode": "bilinear"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {**invert, "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    config = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **SIZES["zoo"]},
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [48, 64, 48], "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": after},
    }
    (bundle / "configs" / "inference.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    names = dict(zip("012", LIKE["labels"], strict=True))
    formats = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": names}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}), encoding="utf-8")
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return load(bundle, trusted=True)


def as_class(network: nn.Module, folder: Path) -> TrainedModel:
    like = folder / "with_network.yaml"
    like.write_text(yaml.safe_dump({"network": SIZES["segresnet"], **LIKE}), encoding="utf-8")
    torch.save({"state_dict": {f"net.{k}": v for k, v in network.state_dict().items()}}, folder / "lightning.ckpt")
    return load("monai.networks.nets:SegResNet", folder / "lightning.ckpt", like)


def as_torchscript(network: nn.Module, folder: Path) -> TrainedModel:
    torch.jit.trace(network, torch.zeros(1, 1, *LIKE["patch_size"])).save(folder / "network.ts")
    return load(folder / "network.ts", like=folder / "like.yaml")


def as_program(network: nn.Module, folder: Path) -> TrainedModel:
    sides = {axis: torch.export.Dim.AUTO for axis in (2, 3, 4)}
    program = torch.export.export(network, (torch.zeros(1, 1, 64, 64, 64),), dynamic_shapes=(sides,))
    torch.export.save(program, folder / "network.pt2")
    return load(folder / "network.pt2", like=folder / "like.yaml")


FORMS: dict[str, Callable[[nn.Module, Path], TrainedModel]] = {
    "zoo": as_zoo_bundle,
    "segresnet": as_class,
    "dynunet": as_torchscript,
    "swinunetr": as_program,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kinds", default=",".join(FORMS))
    parser.add_argument("--minutes", type=float, default=4.0, help="to train each network, and each noise model")
    parser.add_argument("--labels", choices=["model"], help="the network's own segmentation as the target")
    args = parser.parse_args()
    for kind in args.kinds.split(","):
        folder = args.output / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "like.yaml").write_text(yaml.safe_dump(LIKE), encoding="utf-8")
        sys.stdout.write(f"== {kind}: {CLASSES[kind]}\n")
        found = FORMS[kind](trained(kind, args.data, folder, args.minutes), folder)
        fit(found, args.data, folder / "fitted", labels=args.labels, minutes=args.minutes, tell=_tell)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
