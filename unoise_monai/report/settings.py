"""What a result of a comparison hangs on: where any of it has changed, the result is made again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def weights_sha256(network: nn.Module) -> str:
    """Digest of the names, types, shapes and values of all weights and buffers; the same on every device."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes, for NumPy has no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_identity(path: str | Path) -> dict[str, str | int | None]:
    """Name and size of a file, or of a folder and all files in it; not its time, which a copy changes.

    The size is None where there is no such file: whoever reads it says so.
    """
    path = Path(path)
    if path.is_dir():
        size: int | None = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    else:
        size = path.stat().st_size if path.is_file() else None
    return {"name": path.name, "bytes": size}
