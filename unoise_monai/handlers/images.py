"""Pictures of every case beside its NIfTI files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.transforms import LoadImage
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.checks import check_choice
from unoise_monai.handlers.cases import CaseFolders, item_volume, label_voxels, output_items, to_numpy
from unoise_monai.handlers.nifti import GRID_LIMIT
from unoise_monai.render.animation import save_animation
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.grey import check_window
from unoise_monai.render.mip import check_slab, mips
from unoise_monai.render.montage import check_layout, montage
from unoise_monai.render.overlay import check_style
from unoise_monai.render.png import save_png
from unoise_monai.render.rotation import rotating_mip

logger = logging.getLogger(__name__)


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
