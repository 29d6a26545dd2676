"""Reads the volumes that a report shows, as they lie in space."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from unoise_monai.data.reading import load_volume
from unoise_monai.handlers.cases import to_numpy

Scan = Path | Callable[[Path], Path]
"""A volume of any format that MONAI reads, or a folder with one DICOM series; or what makes one of these in the folder
that it is given, and returns it."""
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    KeyError,
    OverflowError,
    MemoryError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""What readers raise of a file that is missing, truncated, damaged or of another kind."""


def read_map(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels ``(X, Y, Z)`` and affine, voxel indices to RAS mm, of a NIfTI file.

    Raises:
        ValueError: when it is not 3-D, is empty, or holds values that are no real, finite numbers.
        Exception: one of ``UNREADABLE``, when it cannot be read.
    """
    image = nib.load(path)
    return _checked(np.asarray(image.dataobj)), np.asarray(image.affine, dtype=np.float64)


def read_scan(scan: Scan) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same of a scan; one that has to be made is there while it is read, and no longer.

    Raises:
        ValueError: when it is not 3-D, is empty, or holds values that are no real, finite numbers.
        Exception: one of ``UNREADABLE``, when it cannot be read or made.
    """
    with tempfile.TemporaryDirectory(prefix="unoise-") as folder:
        path = scan(Path(folder)) if callable(scan) else scan
        # Not MONAI's plain reader: the run has read its grid by this one.
        voxels, affine = to_numpy(load_volume(path)[None])
        return _checked(voxels), affine


def _checked(voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"volume must hold one real number a voxel, got {voxels.dtype}")
    if voxels.ndim != 3 or voxels.size == 0:
        raise ValueError(f"volume must be 3-D and not empty, got shape {voxels.shape}")
    if not np.isfinite(voxels).all():
        raise ValueError("volume must hold finite values only")
    return voxels
