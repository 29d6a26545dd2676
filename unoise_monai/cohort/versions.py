"""What a run is made of, for ``run.json``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("unoise-monai", "monai", "torch", "numpy", "nibabel", "SimpleITK", "captum")


def about(command: str, device: torch.device | None) -> dict[str, Any]:
    """What ``run.json`` says besides the settings; without a device, workers have their own."""
    name = platform.machine() if device is None or device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "command": command,
        "device": "that of each worker, see cohort.csv" if device is None else f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def software() -> str:
    """The versions that a case's files hang on."""
    # Without the local part: builds for other machines are the same software.
    return ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES[:3])
