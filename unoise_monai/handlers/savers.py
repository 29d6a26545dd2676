"""Writes each case's volumes and pictures beside each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.transforms import LoadImage
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice, check_sigma_range
from unoise_monai.data.reading import case_name
from unoise_monai.render.canvas import check_affine, check_importance, check_style, check_window, save_png, to_canonical
from unoise_monai.render.mip import check_slab, mips
from unoise_monai.render.rotation import rotating_mip, save_animation
from unoise_monai.render.slices import check_layout, montage

logger = logging.getLogger(__name__)

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


QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "importance": "importance, 0 to 1",
        "tolerance": "noise tolerance, 0 to 1",
        "sigma": "tolerated noise, standard deviation in normalised intensity",
        "logit": "positive part of the importance's logit",
        "percentile": "percentile rank of the importance in the volume, 0 to 100",
    }
)
"""Name to what it is, with its unit."""

LOGIT_EPSILON = 1e-7
"""Importance is kept this far from 0 and 1 before its logit is taken."""


def map_quantity(
    importance: NDArray[Any], name: str = "importance", sigma_min: float = 1.0, sigma_max: float = 5.0
) -> NDArray[np.float32]:
    """Turn importance into the quantity asked for.

    With p the importance and B = 1 - p the tolerance of Koker et al., "U-Noise", 2021:

    - ``importance``: p.
    - ``tolerance``: B.
    - ``sigma``: ``sigma_min + B * (sigma_max - sigma_min)``, the noise that the voxel bears.
    - ``logit``: ``max(0, log(p / (1 - p)))``, the "positive values retrieved prior to the sigmoid layer" of the
      paper's Fig. 2, with p clamped to [1e-7, 1 - 1e-7].
    - ``percentile``: 100 times the share of voxels below, plus half the share of those equal; ties share their
      mean rank.

    Args:
        importance: values in [0, 1], of any shape.
        name: one of ``QUANTITIES``.
        sigma_min: noise scale at tolerance 0, in units of normalised intensity.
        sigma_max: noise scale at tolerance 1, in units of normalised intensity.

    Returns:
        The quantity, of the same shape.

    Raises:
        ValueError: when ``name`` is unknown.
        ValueError: when the noise scales are not ``0 <= sigma_min < sigma_max``.
        ValueError: when ``importance`` holds values outside [0, 1] by more than 1e-3, or NaN.
    """
    check_choice("quantity", name, tuple(QUANTITIES))
    check_sigma_range(sigma_min, sigma_max)
    p = check_importance(importance)
    if name == "tolerance":
        p = 1 - p
    elif name == "sigma":
        p = sigma_min + (1 - p) * (sigma_max - sigma_min)
    elif name == "logit":
        p = p.clip(LOGIT_EPSILON, 1 - LOGIT_EPSILON)
        p = np.maximum(np.log(p / (1 - p)), 0)
    elif name == "percentile":
        p = _percentile_rank(p)
    return p.astype(np.float32)


def _percentile_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below_and_half = np.cumsum(counts) - counts / 2
    rank: NDArray[np.float64] = 100 * below_and_half[inverse.reshape(values.shape)] / values.size
    return rank


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


def rotation(
    image: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    importance: NDArray[Any],
    segmentation: NDArray[Any] | None = None,
    **options: Any,
) -> NDArray[np.uint8]:
    """The frames of ``rotating_mip``, which draws no outlines."""
    return rotating_mip(image, spacing_mm, importance=importance, **options)


PICTURES: Mapping[str, Callable[..., NDArray[np.uint8]]] = MappingProxyType(
    {"montage": montage, "mip": mips, "rotation": rotation}
)


class PictureSaver:
    """Write importance over the patient's scan as pictures: an ignite handler.

    ``OUTPUT/<case>/<case>_montage.png`` shows slices, ``<case>_mip.png`` maximum intensity projections along the three
    axes, ``<case>_rotation.gif`` one that turns (``render.montage``, ``render.mips``, ``render.rotating_mip``, the same
    however the file is stored).

    Runs after each iteration of an evaluator with ``decollate=True`` whose output holds the maps on the input
    file's grid. The scan is read again from its file, a DICOM series from its folder, so that the pictures show the
    intensities that the clinic knows, not the normalised ones; of several channels the first.

    Args:
        output_dir: folder for the cases' folders.
        pictures: which to write, of ``montage``, ``mip`` and ``rotation``.
        window: intensities that turn black and white (HU in CT); found in what each picture shows where it is None.
        style: ``colour``, a perceptually uniform colour map, or ``red``, as Chatterjee et al., ISMRM 2021.
        threshold: importance up to which ``colour`` shows the scan alone, at least 0 and below 1.
        axis: that the slices are taken along: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices.
        crop_mm: margin around the foreground that slices are cropped to, mm; None for whole slices.
        slab_mm: thickness of the slab around the segmentation that is projected, mm; None for the whole volume, in
            which bone hides the organs of a CT.
        importance_key: where the engine's output holds the importance, ``(1, X, Y, Z)`` in [0, 1].
        segmentation_key: where it holds the segmentation, ``(1, X, Y, Z)`` class indices; None for no outline.

    Raises:
        ValueError: when a picture, ``style`` or ``axis`` is unknown, ``count`` is below 1, ``crop_mm`` below 0,
            ``slab_mm`` not above 0, or ``window`` not in rising order.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        pictures: Sequence[str] = ("montage", "mip"),
        window: tuple[float, float] | None = None,
        style: str = "colour",
        threshold: float = 0.1,
        axis: int = 2,
        count: int = 6,
        crop_mm: float | None = None,
        slab_mm: float | None = None,
        importance_key: str = "importance",
        segmentation_key: str | None = "seg",
    ) -> None:
        for picture in pictures:
            check_choice("picture", picture, tuple(PICTURES))
        check_style(style, threshold)
        check_choice("axis", axis, (0, 1, 2))
        check_layout(count, crop_mm)
        if slab_mm is not None:
            check_slab(slab_mm)
        window = None if window is None else check_window(window)
        self.folders = CaseFolders(output_dir)
        self.options: dict[str, dict[str, Any]] = {
            "montage": {
                "axis": axis,
                "count": count,
                "crop_mm": crop_mm,
                "window": window,
                "style": style,
                "threshold": threshold,
            },
            "mip": {"slab_mm": slab_mm, "window": window, "style": style, "threshold": threshold},
            "rotation": {"window": window, "style": style, "threshold": threshold},
        }
        self.pictures = tuple(pictures)
        self.importance_key = importance_key
        self.segmentation_key = segmentation_key
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def attach(self, engine: Engine) -> None:
        """Run after every iteration of ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in output_items(engine):
            importance = item_volume(item, self.importance_key)
            name, folder, source = self.folders.claim(importance)
            scan = self.load(source)
            image, spacing_mm = to_canonical(*to_numpy(scan))
            voxels, _ = to_numpy(importance)
            volumes = {"importance": on_scan_grid(voxels, importance, scan, self.importance_key, source)}
            if self.segmentation_key is not None:
                segmentation = item_volume(item, self.segmentation_key)
                labels = label_voxels(segmentation, self.segmentation_key)
                volumes["segmentation"] = on_scan_grid(labels, segmentation, scan, self.segmentation_key, source)
            for picture in self.pictures:
                rgb = PICTURES[picture](image, spacing_mm, **volumes, **self.options[picture])
                if picture == "rotation":
                    save_animation(rgb, folder / f"{name}_{picture}.gif")
                else:
                    save_png(rgb, folder / f"{name}_{picture}.png")
            logger.info("%s: wrote %s", name, " and ".join(self.pictures))


def on_scan_grid(voxels: NDArray[Any], volume: Tensor, scan: Tensor, key: str, source: Path) -> NDArray[Any]:
    """A map's voxels in RAS order, once it is known to lie on the grid of its scan.

    They are turned as the scan's: of a volume near 45 degrees the closest axes hang on the affine's last digits, in
    which the map's may differ.

    Raises:
        ValueError: when its shape or its affine is not the scan's.
    """
    rule = f"{key!r} must lie on the grid of its scan {source.name}"
    if volume.shape[1:] != scan.shape[1:]:
        raise ValueError(f"{rule}, of shape {tuple(scan.shape[1:])}, got shape {tuple(volume.shape[1:])}")
    affine, scan_affine = (to_numpy(each)[1] for each in (volume, scan))
    difference = np.abs(affine - scan_affine).max()
    if difference > GRID_LIMIT:
        raise ValueError(f"{rule}, got an affine that differs by {difference:.3g}")
    return to_canonical(voxels, scan_affine)[0]
