"""Writes volumes as NIfTI that 3D Slicer, SimpleITK and nibabel read alike."""

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SHEAR_LIMIT = 1e-4
"""Largest error of a direction cosine in the q-form; SimpleITK and 3D Slicer refuse a file above it."""
GRID_LIMIT = 1e-3
"""Largest difference to the source's affine: readers differ by less, a forgotten inverse transform by more."""


def write_nifti(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    affine: NDArray[Any],
    description: str = "",
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write one volume as 3-D NIfTI, whole or not at all.

    Floats are stored as float32, whole numbers as uint8 or, where they do not fit, int16. The q-form and the s-form
    are equal, both with code 1, in mm; a sheared affine (`is_sheared`) fits no q-form and is written as s-form alone.
    Of the source's header only the encoding axes (``dim_info``) are copied: all else would be wrong for this volume, or
    private.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; missing folders are created.
        array: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxel indices to RAS mm.
        description: free text for the header, cut at 79 bytes.
        source: the image that the volume belongs to. When it is a NIfTI file, the volume must lie on its grid.

    Raises:
        ValueError: when ``array`` is not 3-D, is empty, or holds values that are not finite or whole numbers beyond
            int16; when ``source`` is a NIfTI file of another shape or affine; when ``path`` does not end in ``.nii`` or
            ``.nii.gz``; see `check_affine`.
    """
    if not os.fspath(path).endswith(NIFTI_SUFFIXES):
        raise ValueError(f"path must end in .nii or .nii.gz, got {os.fspath(path)!r}")
    data, matrix = _stored(array), check_affine(affine)
    image = nib.Nifti1Image(data, matrix)
    image.set_sform(matrix, code=1)
    sheared = is_sheared(matrix)
    image.set_qform(None if sheared else matrix, code=0 if sheared else 1, update_affine=False)
    image.header.set_xyzt_units(xyz="mm")
    if source is not None and Path(source).is_file() and os.fspath(source).lower().endswith(NIFTI_SUFFIXES):
        original = nib.load(source)
        rule = f"array must lie on the grid of its source {Path(source).name}"
        if original.shape[:3] != data.shape:
            raise ValueError(f"{rule}, of shape {original.shape[:3]}, got shape {data.shape}")
        difference = np.abs(original.affine - matrix).max()
        if difference > GRID_LIMIT:
            raise ValueError(f"{rule}, got an affine that differs by {difference}")
        image.header.set_dim_info(*original.header.get_dim_info())
    image.header["descrip"] = description.encode()[:79].decode(errors="ignore").encode()
    if data.dtype.kind == "f":
        image.header["cal_min"] = min(0.0, float(data.min()))
        image.header["cal_max"] = max(1.0, float(data.max()))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def check_affine(affine: NDArray[Any]) -> NDArray[np.float64]:
    """An affine, ``(4, 4)``, as float64.

    Raises:
        ValueError: when it is not 4x4, not finite, or singular.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"affine must be 4x4, got shape {matrix.shape}")
    sizes = voxel_sizes(matrix)
    # The rank is taken of the directions, so that small voxels do not count as a singular affine.
    if not np.isfinite(matrix).all() or not sizes.all() or np.linalg.matrix_rank(matrix[:3, :3] / sizes) < 3:
        raise ValueError(f"affine must be finite and not singular, got {matrix.tolist()}")
    return matrix


def is_sheared(affine: NDArray[Any]) -> bool:
    """Whether an affine's axes are not at right angles, as of a tilted gantry: SimpleITK and 3D Slicer refuse such."""
    header = nib.Nifti1Header()
    header.set_qform(affine, code=1)
    return bool(np.abs((header.get_qform()[:3, :3] - affine[:3, :3]) / voxel_sizes(affine)).max() > SHEAR_LIMIT)


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"array must be 3-D and not empty, got shape {array.shape}")
    if array.dtype.kind == "f":
        # A value beyond float32 turns infinite here and is refused below, so numpy need not warn of it.
        with np.errstate(over="ignore"):
            data = array.astype(np.float32)
        bad = int((~np.isfinite(data)).sum())
        if bad:
            raise ValueError(f"array must hold finite values only, got {bad} NaN or infinite of {array.size}")
        return data
    if array.dtype.kind not in "bui":
        raise ValueError(f"array must hold real numbers, got dtype {array.dtype}")
    if array.dtype in (np.uint8, np.int16):
        return array
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise ValueError(f"array must hold whole numbers within int16, got {low} to {high}")
