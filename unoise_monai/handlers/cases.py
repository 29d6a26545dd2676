"""Which case a handler's output item belongs to, and where that case's files go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.data import case_name

LARGEST_LABEL = 2**24
"""Up to which float32 holds every whole number."""


def output_items(engine: Engine) -> list[dict[str, Any]]:
    """The items of the engine's last iteration, one dictionary each.

    Raises:
        TypeError: when the engine's output is not a list of dictionaries (``decollate=True`` makes it one).
    """
    output = engine.state.output
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        raise TypeError(
            "engine.state.output must be a list of dictionaries, one an item (SupervisedEvaluator with "
            f"decollate=True), got {type(output).__name__}"
        )
    return output


def item_volume(item: dict[str, Any], key: str) -> Tensor:
    """The item's map under ``key``, ``(1, X, Y, Z)``, with its geometry (a MetaTensor).

    Raises:
        KeyError: when there is none under that key.
        TypeError: when it does not know its affine and its file.
        ValueError: when it is not of shape ``(1, X, Y, Z)``.
    """
    if key not in item:
        raise KeyError(f"{key!r} must be in the engine's output, got keys {sorted(map(str, item))}")
    volume = item[key]
    if not isinstance(volume, Tensor) or "filename_or_obj" not in getattr(volume, "meta", {}):
        raise TypeError(f"{key!r} must be a MetaTensor whose meta holds 'filename_or_obj', got {type(volume).__name__}")
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"{key!r} must be of shape (1, X, Y, Z), got {tuple(volume.shape)}")
    return volume


def to_numpy(volume: Tensor) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The voxels ``(X, Y, Z)`` and the affine ``(4, 4)``, voxel to RAS mm, of a MetaTensor ``(1, X, Y, Z)``."""
    voxels = volume.detach()[0].cpu()
    if voxels.is_floating_point():
        voxels = voxels.float()  # numpy has no bfloat16
    affine = np.asarray(volume.affine.cpu(), dtype=np.float64)  # type: ignore[attr-defined]
    return np.asarray(voxels.numpy()), affine


def label_voxels(volume: Tensor, key: str) -> NDArray[Any]:
    """The class indices ``(X, Y, Z)`` of a MetaTensor ``(1, X, Y, Z)``: integers in the type that they have, whole
    numbers stored as floats in the smallest that holds them.

    Raises:
        ValueError: when a value is not a whole number, or is a float above ``LARGEST_LABEL``.
    """
    voxels, _ = to_numpy(volume)
    if voxels.dtype.kind != "f":
        return voxels
    low, high = voxels.min(), voxels.max()
    rule = f"{key!r} must hold class indices, whole numbers of at most {LARGEST_LABEL}"
    # Asked so that NaN, which the extremes are where there is one, is refused.
    if not (low >= -LARGEST_LABEL and high <= LARGEST_LABEL):
        raise ValueError(f"{rule}, got values from {low} to {high}")
    # Plane by plane, so that nothing of the volume's size is made.
    if not all(np.array_equal(plane, np.rint(plane)) for plane in voxels):
        raise ValueError(f"{rule}, got fractions")
    # Signed types reach one further below 0 than above it.
    return voxels.astype(np.min_scalar_type(int(high) if low >= 0 else min(int(low), -1 - int(high))))


class CaseFolders:
    """Gives every source image its own folder, and refuses a second image of the same name.

    Args:
        output_dir: the folder that holds the cases' folders.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self._sources: dict[str, Path] = {}

    def claim(self, volume: Tensor) -> tuple[str, Path, Path]:
        """The case's name, its folder and its source image, for a MetaTensor that knows its file.

        Raises:
            ValueError: when another source image of this run has the same name.
        """
        source = Path(str(volume.meta["filename_or_obj"]))  # type: ignore[attr-defined]
        name = case_name(source)
        known = self._sources.setdefault(name, source.resolve())
        if known != source.resolve():
            raise ValueError(f"case names must differ within a run, got {name!r} from {known} and {source.resolve()}")
        return name, self.output_dir / name, source
