"""The device that an option names."""

from __future__ import annotations

import torch


def find_device(name: str = "auto") -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU.

    Raises:
        ValueError: when there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be there, got {name!r} on a machine with {torch.cuda.device_count()} GPUs")
    return device
