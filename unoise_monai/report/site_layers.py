"""The layers of a case's viewer: its scan, its maps and its segmentation, all on one grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from unoise_monai.handlers.nifti import GRID_LIMIT
from unoise_monai.handlers.quantity import QUANTITIES
from unoise_monai.render.canonical import check_affine
from unoise_monai.render.grey import find_window
from unoise_monai.report.files import WHITE, shares
from unoise_monai.report.site_cases import SiteCase
from unoise_monai.report.site_reading import UNREADABLE, Scan, read_map, read_scan
from unoise_monai.report.site_volumes import MOST_VOXELS, block_factors, shrink, shrink_affine

logger = logging.getLogger(__name__)

HIGHEST_LABEL = 255
NO_SCAN = "The scan was not at hand when this report was written: the maps are shown without it."
KINDS = ("scan", "ground", "map", "seg")
"""From the lowest layer to the top; ``ground`` is black, and there where no scan is."""
UNIT = ("importance", "tolerance")
"""Quantities that are 0 to 1 as they are."""
FALLING = ("tolerance", "sigma")
"""Quantities that are low where importance is high."""


@dataclass(frozen=True)
class Layer:
    """One volume of the viewer, as few voxels as it shows."""

    key: str
    """``scan``, ``ground``, ``seg``, or the name of a map."""
    kind: str
    """One of ``KINDS``."""
    title: str
    voxels: NDArray[Any]
    """Maps 0 to 1, the segmentation's class indices, the scan's intensities."""
    affine: NDArray[np.float64]
    low: float
    """What is shown as black in a scan; 0 else."""
    high: float
    """What is shown as white in a scan, the highest class index, or 1."""


@dataclass(frozen=True)
class Layers:
    """What a case's viewer shows."""

    layers: list[Layer]
    """In the order of ``KINDS``."""
    notes: list[str]
    """What is not as one would expect, in sentences."""
    factors: tuple[int, int, int]
    """Voxels of the files that one voxel of the layers stands for, along the patient's axes."""

    def maps(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == "map"]

    def segmentation(self) -> Layer | None:
        return next((layer for layer in self.layers if layer.kind == "seg"), None)

    def importance(self) -> NDArray[Any] | None:
        """Importance, 0 to 1; None where the first map is a method's, or a quantity that does not tell it."""
        first = next(iter(self.maps()), None)
        if first is None or first.key not in UNIT:
            return None
        return 1 - first.voxels if first.key in FALLING else first.voxels

    def start(self) -> list[float]:
        """Where a look at the case begins, 0 to 1 along each axis: in the middle of the segmentation, or of what is
        most important, or of the volume."""
        segmentation, maps = self.segmentation(), self.maps()
        if segmentation is not None and segmentation.voxels.any():
            inside = np.argwhere(segmentation.voxels)
        elif maps:
            values = -maps[0].voxels if maps[0].key in FALLING else maps[0].voxels
            inside = np.argwhere(values == values.max())
        else:
            return [0.5, 0.5, 0.5]
        # The voxel inside that is nearest to the middle: the middle itself can lie in a hole.
        found = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return [round((int(i) + 0.5) / size, 4) for i, size in zip(found, self.layers[0].voxels.shape, strict=True)]


def read_layers(case: SiteCase, scan: Scan | None, most: int = MOST_VOXELS) -> Layers:
    """Read a case's volumes and thin them alike.

    A file that cannot be read, or lies on another grid than the first, is left out, and a note says so.

    Args:
        case: with its maps and its segmentation.
        scan: shown beneath the maps, and not read where there are none; None for no scan.
        most: voxels of a layer.
    """
    files = [(key, "map", partial(read_map, path)) for key, path in case.maps.items()]
    if case.segmentation is not None:
        files.append(("seg", "seg", partial(read_map, case.segmentation)))
    if scan is not None:
        # Last: the maps lie on one grid by construction, and the scan is measured by them.
        files.append(("scan", "scan", partial(read_scan, scan)))
    found: list[Layer] = []
    notes: list[str] = []
    grid: _Grid | None = None
    for key, kind, read in files:
        if kind == "scan" and not found:
            break
        title = _title(key, kind)
        try:
            voxels, affine = read()
            grid = grid or _Grid.of(voxels.shape, affine, most)
            if grid.fits(voxels.shape, affine):
                found.append(_layer(key, kind, title, voxels, grid))
            else:
                notes.append(f"The {title} lies on another grid than the maps and is not shown.")
        except UNREADABLE as error:
            # The reader's own words can hold a path, or what a header says of the patient.
            logger.warning("%s: the %s could not be read (%s)", case.name, key, type(error).__name__)
            notes.append(f"The {title} could not be read and is not shown.")
    if scan is None and found:
        notes.append(NO_SCAN)
    if found and not any(layer.kind == "scan" for layer in found):
        # The viewer cuts off by threshold only what lies over something.
        nothing = np.zeros_like(found[0].voxels, dtype=np.uint8)
        found.append(Layer("ground", "ground", "", nothing, found[0].affine, 0.0, 1.0))
    found.sort(key=lambda layer: KINDS.index(layer.kind))
    return Layers(found, notes, grid.factors if grid else (1, 1, 1))


@dataclass(frozen=True)
class _Grid:
    """The grid of a case's files, and how it is turned and thinned for the viewer."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    orientation: NDArray[Any]
    factors: tuple[int, int, int]
    shown: NDArray[np.float64]
    """The affine of the layers."""

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: NDArray[np.float64], most: int) -> _Grid:
        orientation = nib.io_orientation(check_affine(affine))
        turned = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
        size = tuple(shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
        factors = block_factors(size, turned, most)
        return cls(shape, affine, orientation, factors, shrink_affine(turned, factors))

    def fits(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> bool:
        return shape == self.shape and np.allclose(affine, self.affine, rtol=0, atol=GRID_LIMIT)

    def thin(self, voxels: NDArray[Any], how: str = "mean") -> NDArray[Any]:
        return shrink(nib.apply_orientation(voxels, self.orientation), self.factors, how)


def _title(key: str, kind: str) -> str:
    if kind != "map":
        return {"scan": "scan", "seg": "segmentation"}[kind]
    if key in UNIT:
        return QUANTITIES[key].split(",")[0]
    return f"{key.replace('_', ' ')}, share of its {WHITE:g}th percentile"


def _layer(key: str, kind: str, title: str, voxels: NDArray[Any], grid: _Grid) -> Layer:
    if kind == "seg":
        labels = np.round(voxels).astype(np.int64)
        if labels.min() < 0 or labels.max() > HIGHEST_LABEL:
            raise ValueError(f"class indices must lie in 0 to {HIGHEST_LABEL}, got {labels.min()} to {labels.max()}")
        return Layer(key, kind, title, grid.thin(labels.astype(np.uint8), "max"), grid.shown, 0.0, float(labels.max()))
    if kind == "map":
        values = np.clip(voxels, 0, 1) if key in UNIT else shares(voxels)
        return Layer(key, kind, title, grid.thin(values), grid.shown, 0.0, 1.0)
    # Whole intensities, such as Hounsfield units, stay whole: they take less room.
    whole = bool((voxels == np.round(voxels)).all())
    thinned = grid.thin(voxels)
    return Layer(key, kind, title, np.round(thinned) if whole else thinned, grid.shown, *find_window(thinned))
