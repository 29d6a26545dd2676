"""NIfTI files beside the patient's scan: what 3D Slicer, SimpleITK and nibabel read alike."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice, check_sigma_range
from unoise_monai.handlers.cases import CaseFolders, item_volume, label_voxels, output_items, to_numpy
from unoise_monai.handlers.quantity import QUANTITIES, map_quantity
from unoise_monai.render.canonical import check_affine

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SHEAR_LIMIT = 1e-4
"""Largest error of a direction cosine in the q-form; SimpleITK and 3D Slicer refuse a file above it."""
GRID_LIMIT = 1e-3
"""Largest difference to the source's affine: readers differ by less, a forgotten inverse transform by more."""


def save_nifti(
    array: NDArray[Any],
    affine: NDArray[Any],
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    description: str = "",
) -> None:
    """Write one volume as 3-D NIfTI, whole or not at all.

    Floats are stored as float32, whole numbers as uint8 or, where they do not fit, int16. The q-form and the s-form
    are equal, both with code 1, in mm. Of the source's header only the encoding axes (``dim_info``) are taken over:
    its value range, scaling, texts and extensions would be wrong for this map, or private.

    A sheared affine fits no q-form: it is written as s-form alone, and a warning is logged.

    Args:
        array: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxel indices to RAS mm.
        path: ends in ``.nii`` or ``.nii.gz``; missing folders are created.
        source: the image that the volume belongs to. When it is a NIfTI file, the volume must lie on its grid.
        description: free text for the header, cut at 79 bytes.

    Raises:
        ValueError: when ``array`` is not 3-D, is empty, or holds values that are not finite.
        ValueError: when ``array`` holds whole numbers beyond int16.
        ValueError: when ``affine`` is not 4x4, not finite, or singular.
        ValueError: when ``path`` does not end in ``.nii`` or ``.nii.gz``.
        ValueError: when ``source`` is a NIfTI file of another shape or affine.
    """
    if not os.fspath(path).endswith(NIFTI_SUFFIXES):
        raise ValueError(f"path must end in .nii or .nii.gz, got {os.fspath(path)!r}")
    data = _stored(array)
    matrix = check_affine(affine)
    header = nib.Nifti1Header()
    if source is not None and Path(source).is_file() and os.fspath(source).lower().endswith(NIFTI_SUFFIXES):
        header.set_dim_info(*_checked_source(source, data.shape, matrix))
    header.set_data_dtype(data.dtype)
    image = nib.Nifti1Image(data, matrix, header)
    image.set_sform(matrix, code=1)
    image.set_qform(matrix, code=1, update_affine=False)
    spacing_mm = voxel_sizes(matrix)
    if np.abs((image.get_qform()[:3, :3] - matrix[:3, :3]) / spacing_mm).max() > SHEAR_LIMIT:
        image.set_qform(None, code=0, update_affine=False)
        logger.warning("%s has a sheared affine: SimpleITK and 3D Slicer will refuse it", Path(path).name)
    image.header.set_xyzt_units(xyz="mm")
    image.header["descrip"] = description.encode()[:79].decode(errors="ignore").encode()
    if data.dtype.kind == "f":
        image.header["cal_min"] = min(0.0, float(data.min()))
        image.header["cal_max"] = max(1.0, float(data.max()))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


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
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise ValueError(f"array must hold whole numbers within int16, got {low} to {high}")


def _checked_source(
    source: str | os.PathLike[str], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[int | None, int | None, int | None]:
    image = nib.load(source)
    rule = f"array must lie on the grid of its source {Path(source).name}"
    if image.shape[:3] != shape:
        raise ValueError(f"{rule}, of shape {image.shape[:3]}, got shape {shape}")
    difference = np.abs(image.affine - affine).max()
    if difference > GRID_LIMIT:
        raise ValueError(f"{rule}, got an affine that differs by {difference}")
    axes: tuple[int | None, int | None, int | None] = image.header.get_dim_info()
    return axes


class ImportanceSaver:
    """Write every case's importance and segmentation beside each other: an ignite handler.

    After each iteration of an evaluator with ``decollate=True`` whose output holds the two maps on the input file's
    grid (``Invertd`` ran), writes ``OUTPUT/<case>/<case>_<quantity>.nii.gz`` (float32) and
    ``OUTPUT/<case>/<case>_seg.nii.gz`` (class indices).

    Args:
        output_dir: folder for the cases' folders.
        quantity: what is written of the importance, one of ``QUANTITIES``.
        sigma_min: noise scale at tolerance 0, in units of normalised intensity, for ``quantity="sigma"``.
        sigma_max: noise scale at tolerance 1, in units of normalised intensity, for ``quantity="sigma"``.
        importance_key: where the engine's output holds the importance, ``(1, X, Y, Z)`` in [0, 1].
        segmentation_key: where it holds the segmentation, ``(1, X, Y, Z)`` class indices.

    Raises:
        ValueError: when ``quantity`` is unknown, or the noise scales are not ``0 <= sigma_min < sigma_max``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        quantity: str = "importance",
        sigma_min: float = 1.0,
        sigma_max: float = 5.0,
        importance_key: str = "importance",
        segmentation_key: str = "seg",
    ) -> None:
        check_choice("quantity", quantity, tuple(QUANTITIES))
        check_sigma_range(sigma_min, sigma_max)
        self.folders = CaseFolders(output_dir)
        self.quantity = quantity
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.importance_key = importance_key
        self.segmentation_key = segmentation_key

    def attach(self, engine: Engine) -> None:
        """Run after every iteration of ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in output_items(engine):
            importance = item_volume(item, self.importance_key)
            segmentation = item_volume(item, self.segmentation_key)
            name, folder, source = self.folders.claim(importance)
            voxels, affine = to_numpy(importance)
            values = map_quantity(voxels, self.quantity, self.sigma_min, self.sigma_max)
            labels = label_voxels(segmentation, self.segmentation_key)
            _, label_affine = to_numpy(segmentation)
            described = f"U-Noise {QUANTITIES[self.quantity]}"
            save_nifti(values, affine, folder / f"{name}_{self.quantity}.nii.gz", source, described)
            save_nifti(labels, label_affine, folder / f"{name}_seg.nii.gz", source, "segmentation, class indices")
            logger.info("%s: wrote %s and segmentation", name, self.quantity)
