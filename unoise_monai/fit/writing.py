"""Writes the bundle of a user's network: the configurations of a shipped one, with the blocks that say what differs."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unoise_monai.bundle import METADATA, find_bundle
from unoise_monai.fit.checking import Checked
from unoise_monai.fit.loading import TrainedModel, copy_model

TEMPLATE = "hippocampus_mr_unoise"
"""The shipped bundle whose configurations are taken; all of them differ in what their data are alone."""
OVERLAYS = ("explain", "evaluate", "train_visible", "multi_gpu_train")


def replaced(text: str, blocks: Mapping[str, Any]) -> str:
    """A configuration in which top-level ids have other values, with the comments before them left out.

    Raises:
        KeyError: when it has no such id.
    """
    for name, value in blocks.items():
        block = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=None if nested(value) else False)
        pattern = rf"(?:^#.*\n)*^{re.escape(name)}:.*\n(?:[ \-].*\n)*"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.MULTILINE)  # type: ignore[misc]
        if count != 1:
            raise KeyError(name)
    return text


def nested(value: Any) -> bool:
    """Whether a value takes several lines, of which each holds one in turn."""
    return isinstance(value, dict) or (isinstance(value, list) and not any(isinstance(each, str) for each in value))


def write_bundle(
    found: TrainedModel,
    checked: Checked,
    folder: Path,
    name: str,
    dataset: Path,
    labels: str | None,
    minutes: float,
    epochs: int,
    objective: str,
) -> None:
    """The configurations of a bundle, and what they need besides weights, in a new folder.

    Args:
        found: the model.
        checked: what was found out about it.
        folder: where it is written.
        name: of the bundle.
        dataset: the user's data.
        labels: the folder of label maps, relative to the bundle; None for those of the data.
        minutes: after which training ends.
        epochs: of training, planned to be done by then.
        objective: of training.
    """
    model, template = found.model, find_bundle(TEMPLATE)
    copy_model(found, folder / "model")
    shutil.copy(template / "LICENSE", folder)
    (folder / "models").mkdir()
    configs = folder / "configs"
    configs.mkdir()
    shutil.copy(template / "configs" / "logging.conf", configs)
    target: dict[str, Any] = {
        "_target_": f"unoise_monai.fit.{type(model).__name__}",
        "folder": "$@bundle_root + '/model'",
    }
    target |= {
        name: getattr(model, name) for name in ("configuration", "trainer", "mirrored_axes") if hasattr(model, name)
    }
    if "mirrored_axes" in target:
        target["mirrored_axes"] = list(target["mirrored_axes"])
    dims = len(checked.crop_size)
    noise_model = {
        "_target_": "unoise_monai.networks.UNet",
        **{"spatial_dims": dims, "in_channels": model.channels, "out_channels": 1, "depth": 3, "channel_factor": 4},
    }
    utility = {"_target_": "unoise_monai.networks.ClassLogits", "network": found.config, **checked.settings}
    shared = {
        "dataset_dir": f"$@bundle_root + '/{Path(os.path.relpath(dataset, folder)).as_posix()}'",
        "sigma_max": round(checked.sigma_max, 4),
        "class_names": "$@model.class_names",
        "utility": utility,
        "noise_model": noise_model,
    }
    inference = (template / "configs" / "inference.yaml").read_text(encoding="utf-8")
    inference = replaced(
        inference.replace("\ntask:", "\nmodel:"),
        {
            "model": target,
            **shared,
            "preprocessing": "$@model.preprocessing()",
            "inferer": "$@model.inferer(@memory_gb, @precision)",
            "postprocessing": "$@model.postprocessing(@preprocessing)",
        },
    )
    place = None if labels is None else f"@bundle_root + '/{labels}'"
    train = (template / "configs" / "train.yaml").read_text(encoding="utf-8")
    # Windows are mirrored to predict alone: to validate, that would take eight times as long.
    plain = {**target, **({"mirrored_axes": []} if "mirrored_axes" in target else {})}
    train = replaced(
        train.replace("\ntask:", "\nmodel:"),
        {
            "model": plain,
            **shared,
            "cases": f"$data.find_labelled(@dataset_dir, {place})",
            "preprocessing": "$@model.preprocessing(with_label=True)",
            "crop_size": list(checked.crop_size),
            "inferer": "$@model.inferer(None, @precision)",
            "max_epochs": epochs,
            "val_interval": max(1, epochs // 5),
            "utility_weights": ["$@ckpt_dir + '/model.pt'"],
            "train_utility_command": "",
        },
    )
    handlers = "  - {_target_: unoise_monai.handlers."
    limit = f"{handlers}MinutesLimit, minutes: {minutes:g}, validator: '@validate#evaluator'}}\n"
    train = train.replace(f"{handlers}LossProgress", f"{limit}{handlers}LossProgress")
    texts = {"inference": inference, "train": train}
    for overlay in OVERLAYS:
        texts[overlay] = (template / "configs" / f"{overlay}.yaml").read_text(encoding="utf-8")
    texts["train_visible"] = replaced(texts["train_visible"], {"max_epochs": epochs}).replace(
        "  value: 0.0\n", f"  value: {checked.hidden_value:.4g}\n"
    )
    for config, text in texts.items():
        (configs / f"{config}.yaml").write_text(text.replace("Task04_Hippocampus", dataset.name), encoding="utf-8")
    _write_metadata(found, checked, template, folder, name, objective)


def _write_metadata(
    found: TrainedModel, checked: Checked, template: Path, folder: Path, name: str, objective: str
) -> None:
    metadata = json.loads((template / METADATA).read_text(encoding="utf-8"))
    names = found.model.class_names
    logits = names if len(names) > 2 or not found.model.regions else names[1:]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    pred |= {
        "num_channels": len(logits) + 1,
        "channel_def": {str(index): name for index, name in enumerate((*logits, "importance"))},
    }
    image = metadata["network_data_format"]["inputs"]["image"]
    channels = found.model.channels
    sides = [f"{checked.utility.stride}*n"] * len(checked.crop_size)
    image |= {"modality": "n/a", "num_channels": channels, "spatial_shape": sides}
    image |= {"channel_def": {str(index): f"channel {index}" for index in range(channels)}}
    metadata |= {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"made by unoise fit from {found.name}"},
        "name": name,
        "task": f"Importance of voxels for {found.name}",
        "description": f"{found.name} with a noise model trained for it ({objective}); made by unoise fit.",
        "label_classes": ", ".join(f"{index} {name}" for index, name in enumerate(names)),
        "image_classes": f"{channels} channels, preprocessed as the model's own configuration says",
        "data_source": "the data that unoise fit was given",
        "authors": f"those of {found.name}, and unoise fit",
        "copyright": f"of the authors of {found.name}",
        "references": metadata["references"][:1],
        "eval_metrics": {},
    }
    _save_metadata(folder, metadata)


def add_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Put measured numbers into a bundle's metadata."""
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    _save_metadata(folder, metadata | {"eval_metrics": dict(metrics)})


def _save_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    text = json.dumps(metadata, indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")


def write_readme(folder: Path, name: str, lines: Sequence[str], table: Sequence[str], verdict: str) -> None:
    """The bundle's page: what was found, and the measured table."""
    docs = folder / "docs"
    docs.mkdir(exist_ok=True)
    text = [
        f"# {folder.name}",
        "",
        f"Which voxels {name} relies on: its network with a noise model, made by `unoise fit`.",
        "",
        "```",
        f"unoise explain {folder.name} SCANS RESULTS",
        "```",
        "",
        "## What was found of the model",
        "",
        *(f"- {line}" for line in lines),
        "",
        "## Is the map to be believed?",
        "",
        verdict,
        "",
        *table,
        "",
    ]
    (docs / "README.md").write_text("\n".join(text), encoding="utf-8")
    (docs / "data_license.txt").write_text("The licence of the data that it was trained on.\n", encoding="utf-8")
