"""Writes each case's volumes and pictures beside each other."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.checks import check_choice, check_sigma_range
from unoise_monai.data.nifti import GRID_LIMIT, is_sheared, write_nifti
from unoise_monai.data.reading import case_name, load_again
from unoise_monai.render.canvas import (
    DISPLAY_PERCENTILE,
    Rgb,
    Spacing,
    Volume,
    check_importance,
    check_style,
    check_window,
    display_scale,
    save_png,
    to_canonical,
)
from unoise_monai.render.mip import check_slab, mips, rotating_mip, save_animation
from unoise_monai.render.slices import check_layout, montage

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """One kind of picture."""

    draw: Callable[..., Rgb]
    """Called with ``(image, spacing_mm, importance, segmentation, **options)``, see ``mips``."""
    save: Callable[[Rgb, str | os.PathLike[str]], None]
    suffix: str
    """Of its file."""
    options: tuple[str, ...]
    """Names of the options that ``draw`` takes and a bundle may set."""

    def chosen(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options of all pictures that this one takes."""
        return {name: options[name] for name in self.options if name in options}


def rotation(
    image: Volume, spacing_mm: Spacing, importance: Volume | None = None, segmentation: Any = None, **options: Any
) -> Rgb:
    """The frames of ``rotating_mip``, which draws no outlines."""
    return rotating_mip(image, spacing_mm, importance=importance, **options)


LOOK = ("window", "style", "threshold", "label")
PICTURES: Mapping[str, Picture] = MappingProxyType(
    {
        "montage": Picture(montage, save_png, ".png", (*LOOK, "axis", "count", "crop_mm")),
        "mip": Picture(mips, save_png, ".png", (*LOOK, "slab_mm")),
        "rotation": Picture(rotation, save_animation, ".gif", LOOK),
    }
)
"""By name, as the file's name has it: ``<case>_<name><suffix>``."""


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


def item_volume(item: Mapping[Any, Any], key: str) -> Tensor:
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


class Saver:
    """Writes files of a case into its folder: what a bundle's ``savers`` are made of, and an ignite handler.

    `unoise explain` asks for the names of the files first, so that none is left of a run that is killed; a bundle's own
    run calls it after each iteration of an evaluator with ``decollate=True``, whose output holds the maps on the input
    file's grid (``Invertd`` ran).

    Args:
        output_dir: folder for the cases' folders, in a bundle's own run.
    """

    def __init__(self, output_dir: str | os.PathLike[str] = ".") -> None:
        self.output_dir = Path(output_dir)
        self._sources: dict[str, Path] = {}

    def files(self, case: str, method: str = "") -> list[str]:
        """The names of the files that `save` writes for a case, or for an attribution method's map of it."""
        raise NotImplementedError

    def save(
        self, item: Mapping[Any, Any], case: str, folder: Path, scan: Tensor | None = None, method: str = ""
    ) -> None:
        """Write the files of a case.

        Args:
            item: the maps by their keys, MetaTensors ``(1, X, Y, Z)``; an attribution map under the method's name.
            case: its name, with which all files begin.
            folder: where to; made where it is missing.
            scan: ``(1, X, Y, Z)`` with the intensities of its file; read from there where it is None.
            method: write the map of this attribution method instead of the importance.
        """
        raise NotImplementedError

    def attach(self, engine: Engine) -> None:
        """Run after every iteration of ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in output_items(engine):
            case = self._claim(item)
            self.save(item, case, self.output_dir / case)
            logger.info("%s: wrote %s", case, ", ".join(self.files(case)))

    def _claim(self, item: Mapping[Any, Any]) -> str:
        """The case's name, which no other source image of this run may have."""
        source = _source(item)
        case = str(item.get("case") or _meta(item).get("case") or case_name(source))
        known = self._sources.setdefault(case, source.resolve())
        if known != source.resolve():
            raise ValueError(f"case names must differ within a run, got {case!r} from {known} and {source.resolve()}")
        return case


class ImportanceSaver(Saver):
    """Write a case's importance and segmentation beside each other.

    ``<case>_<quantity>.nii.gz`` (float32) and ``<case>_seg.nii.gz`` (class indices); of an attribution method its raw
    values as ``<case>_<method>.nii.gz``.

    Args:
        output_dir: see `Saver`.
        quantity: what is written of the importance, one of ``QUANTITIES``.
        sigma_min: noise scale at tolerance 0, in units of normalised intensity, for ``quantity="sigma"``.
        sigma_max: noise scale at tolerance 1, in units of normalised intensity, for ``quantity="sigma"``.
        importance_key: where the item holds the importance, ``(1, X, Y, Z)`` in [0, 1].
        segmentation_key: where it holds the segmentation, ``(1, X, Y, Z)`` class indices.

    Raises:
        ValueError: when ``quantity`` is unknown, or the noise scales are not ``0 <= sigma_min < sigma_max``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = ".",
        quantity: str = "importance",
        sigma_min: float = 1.0,
        sigma_max: float = 5.0,
        importance_key: str = "importance",
        segmentation_key: str = "seg",
    ) -> None:
        super().__init__(output_dir)
        check_choice("quantity", quantity, tuple(QUANTITIES))
        check_sigma_range(sigma_min, sigma_max)
        self.quantity, self.sigma_min, self.sigma_max = quantity, sigma_min, sigma_max
        self.importance_key, self.segmentation_key = importance_key, segmentation_key

    def files(self, case: str, method: str = "") -> list[str]:
        names = [method] if method else [self.quantity, "seg"]
        return [f"{case}_{name}.nii.gz" for name in names]

    def save(
        self, item: Mapping[Any, Any], case: str, folder: Path, scan: Tensor | None = None, method: str = ""
    ) -> None:
        volumes: list[tuple[NDArray[Any], NDArray[np.float64], str]] = []
        if method:
            volumes.append((*to_numpy(item_volume(item, method)), f"attribution by {method}, raw values"))
        else:
            segmentation = item_volume(item, self.segmentation_key)
            voxels, affine = to_numpy(item_volume(item, self.importance_key))
            values = map_quantity(voxels, self.quantity, self.sigma_min, self.sigma_max)
            volumes.append((values, affine, f"U-Noise {QUANTITIES[self.quantity]}"))
            labels = label_voxels(segmentation, self.segmentation_key)
            volumes.append((labels, to_numpy(segmentation)[1], "segmentation, class indices"))
        for name, (array, affine, description) in zip(self.files(case, method), volumes, strict=True):
            if is_sheared(affine):
                logger.warning("%s has a sheared affine: SimpleITK and 3D Slicer will refuse it", name)
            write_nifti(folder / name, array, affine, description, _source(item))


class PictureSaver(Saver):
    """Draw a case's importance over its scan.

    ``<case>_montage.png`` shows slices, ``<case>_mip.png`` maximum intensity projections along the three axes,
    ``<case>_rotation.gif`` one that turns (``render.montage``, ``render.mips``, ``render.rotating_mip``, the same
    however the file is stored); of an attribution method ``<case>_<method>_montage.png`` and so on, from 0 to the
    map's 99.9th percentile. Pictures show the intensities that the clinic knows, not the normalised ones; of several
    channels the first.

    Args:
        output_dir: see `Saver`.
        pictures: which to write, of ``montage``, ``mip`` and ``rotation``.
        window: intensities that turn black and white (HU in CT); found in what each picture shows where it is None.
        style: ``colour``, a perceptually uniform colour map, or ``red``, as Chatterjee et al., ISMRM 2021.
        threshold: importance up to which ``colour`` shows the scan alone, at least 0 and below 1.
        axis: that the slices are taken along: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices.
        crop_mm: margin around the foreground that slices are cropped to, mm; None for whole slices.
        slab_mm: thickness of the slab around the segmentation that is projected, mm; None for the whole volume, in
            which bone hides the organs of a CT.
        importance_key: where the item holds the importance, ``(1, X, Y, Z)`` in [0, 1].
        segmentation_key: where it holds the segmentation, ``(1, X, Y, Z)`` class indices; None for no outline.

    Raises:
        ValueError: when a picture, ``style`` or ``axis`` is unknown, ``count`` is below 1, ``crop_mm`` below 0,
            ``slab_mm`` not above 0, or ``window`` not in rising order.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = ".",
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
        super().__init__(output_dir)
        for picture in pictures:
            check_choice("picture", picture, tuple(PICTURES))
        check_style(style, threshold)
        check_choice("axis", axis, (0, 1, 2))
        check_layout(count, crop_mm)
        if slab_mm is not None:
            check_slab(slab_mm)
        self.options: dict[str, Any] = {
            "window": None if window is None else check_window(window),
            "style": style,
            "threshold": threshold,
            "axis": axis,
            "count": count,
            "crop_mm": crop_mm,
            "slab_mm": slab_mm,
        }
        self.pictures = tuple(pictures)
        self.importance_key, self.segmentation_key = importance_key, segmentation_key

    def files(self, case: str, method: str = "") -> list[str]:
        start = f"{case}_{method}" if method else case
        return [f"{start}_{name}{PICTURES[name].suffix}" for name in self.pictures]

    def save(
        self, item: Mapping[Any, Any], case: str, folder: Path, scan: Tensor | None = None, method: str = ""
    ) -> None:
        if not self.pictures:
            return
        source = _source(item)
        scan = load_again(_meta(item))[None] if scan is None else scan
        image, spacing_mm = to_canonical(*to_numpy(scan))
        importance = item_volume(item, method or self.importance_key)
        values = on_scan_grid(to_numpy(importance)[0], importance, scan, method or self.importance_key, source)
        volumes: dict[str, Any] = {"importance": display_scale(values) if method else values}
        if self.segmentation_key is not None:
            segmentation = item_volume(item, self.segmentation_key)
            labels = label_voxels(segmentation, self.segmentation_key)
            volumes["segmentation"] = on_scan_grid(labels, segmentation, scan, self.segmentation_key, source)
        label = {"label": f"{method}, share of its {DISPLAY_PERCENTILE:g}th percentile"} if method else {}
        for kind, name in zip((PICTURES[each] for each in self.pictures), self.files(case, method), strict=True):
            kind.save(kind.draw(image, spacing_mm, **volumes, **kind.chosen({**self.options, **label})), folder / name)


def _meta(item: Mapping[Any, Any]) -> Mapping[str, Any]:
    """What the maps of an item know of the image that they belong to.

    Raises:
        TypeError: when none knows its file.
    """
    for value in item.values():
        if "filename_or_obj" in getattr(value, "meta", {}):
            return dict(value.meta)
    keys = sorted(map(str, item))
    raise TypeError(f"items must hold a MetaTensor whose meta holds 'filename_or_obj', got none under keys {keys}")


def _source(item: Mapping[Any, Any]) -> Path:
    """The file, or the folder of a DICOM series, that the maps of an item belong to."""
    return Path(str(_meta(item)["filename_or_obj"]))


def on_scan_grid(voxels: NDArray[Any], volume: Tensor, scan: Tensor, key: str, source: Path) -> NDArray[Any]:
    """A map's voxels in RAS order, once it is known to lie on the grid of its scan.

    They are turned as the scan's: of a volume near 45 degrees the closest axes depend on the affine's last digits, in
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
