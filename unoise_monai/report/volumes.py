"""The volumes that a report shows, as they lie in space."""

import base64
import gzip
import logging
import zlib
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from unoise_monai.data.nifti import check_affine
from unoise_monai.data.reading import Source, load_volume
from unoise_monai.handlers.savers import GRID_LIMIT, QUANTITIES, to_numpy
from unoise_monai.render.canvas import DISPLAY_PERCENTILE, check_volume, display_scale, find_window
from unoise_monai.report.cases import SiteCase

logger = logging.getLogger(__name__)

ONE_AT_A_TIME = Lock()
"""Whether ITK writes warnings, which name files, is a setting of the whole process."""
READERS = (ImageFileError, HeaderDataError, WrapStructError, zlib.error)
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, KeyError, OverflowError, MemoryError, *READERS)
"""What readers raise of a file that is missing, truncated, damaged or of another kind."""


def read_map(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels ``(X, Y, Z)`` and affine, voxel indices to RAS mm, of a NIfTI file.

    Raises:
        ValueError: when it is not 3-D, is empty, or holds values that are no real, finite numbers.
        Exception: one of ``UNREADABLE``, when it cannot be read.
    """
    image = nib.load(path)
    return _checked(np.asarray(image.dataobj)), np.asarray(image.affine, dtype=np.float64)


def read_scan(scan: Source) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same of a scan, by the reader that the run has read its grid with."""
    with ONE_AT_A_TIME:
        voxels, affine = to_numpy(load_volume(scan)[None])
    return _checked(voxels), affine


def _checked(voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"volume must hold one real number a voxel, got {voxels.dtype}")
    check_volume("volume", voxels)
    return voxels


MOST_VOXELS = 8_000_000
"""Of one layer of the viewer."""


def block_factors(shape: tuple[int, ...], affine: NDArray[np.float64], most: int = MOST_VOXELS) -> tuple[int, int, int]:
    """How many voxels along each axis of a volume ``(X, Y, Z)`` become one, so that at most ``most`` are left.

    The axis with the smallest voxels is thinned first, so that they become more alike.
    """
    factors, sizes = [1, 1, 1], voxel_sizes(affine)

    def left() -> list[int]:
        return [-(-size // factor) for size, factor in zip(shape, factors, strict=True)]

    while np.prod(left(), dtype=np.int64) > most:
        thinnable = [axis for axis, size in enumerate(left()) if size > 1]
        factors[min(thinnable, key=lambda axis: sizes[axis] * factors[axis])] += 1
    return factors[0], factors[1], factors[2]


def shrink(volume: NDArray[Any], factors: tuple[int, int, int], how: str = "mean") -> NDArray[Any]:
    """One voxel for each block of so many voxels along each axis; of blocks that the border cuts, those that are there.

    ``how`` is ``mean``, as float32; or ``max``, for class indices: a vessel of one voxel stays.
    """
    mean = how == "mean"
    volume = volume.astype(np.float32, copy=False) if mean else volume
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, volume.shape[axis], factor)
            counts = np.diff(starts, append=volume.shape[axis]).astype(np.float32)
            volume = (np.add if mean else np.maximum).reduceat(volume, starts, axis)
            if mean:
                volume /= np.expand_dims(counts, [other for other in range(3) if other != axis])
    return volume


def shrink_affine(affine: NDArray[np.float64], factors: tuple[int, int, int]) -> NDArray[np.float64]:
    """The affine of a volume after ``shrink``: a block's centre is the centre of its voxels."""
    blocks = np.diag([*map(float, factors), 1.0])
    blocks[:3, 3] = (np.asarray(factors) - 1) / 2
    return np.asarray(affine @ blocks, dtype=np.float64)


def pack(volume: NDArray[Any], affine: NDArray[np.float64], classes: bool = False) -> str:
    """A finite volume ``(X, Y, Z)`` as base64 of compressed NIfTI, whose header holds the grid and nothing else.

    Whole numbers are stored as they are, others as uint8 (0 to 1) or in 1024 steps from their lowest to their highest.
    The affine leads from voxel indices to RAS mm; the viewer outlines ``classes``, which are class indices.
    """
    low, high = float(volume.min()), float(volume.max())
    fitting = [kind for kind in (np.uint8, np.int16) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    # The type of the file, what one step is worth, and what 0 is worth.
    kind: type[np.integer[Any]]
    if fitting and (volume.dtype.kind != "f" or (volume == np.round(volume)).all()):
        kind, slope, start = fitting[0], 1.0, 0.0
    elif low >= 0 and high <= 1:
        kind, slope, start = np.uint8, 1 / 255, 0.0
    else:
        kind, slope, start = np.int16, max((high - low) / 1023, float(np.finfo(np.float32).tiny)), low
    stored = np.round((volume.astype(np.float32) - start) / slope).astype(kind)
    image = nib.Nifti1Image(stored, affine)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, start)
    image.header.set_intent("label" if classes else "none")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")


NO_SCAN = "The scan was not at hand when this report was written: the maps are shown without it."
KINDS = ("scan", "ground", "map", "seg")
"""From the lowest layer to the top; ``ground`` is black, and there where no scan is."""
UNIT = ("importance", "tolerance")
"""Quantities that are 0 to 1 as they are."""
FALLING = ("tolerance", "sigma")
"""Quantities that are low where importance is high."""


class Layer(NamedTuple):
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


class Layers(NamedTuple):
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
        """Importance, 0 to 1; None where the first map is a method's, or a quantity that does not give it."""
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


def read_layers(case: SiteCase, scan: Source | None, most: int = MOST_VOXELS) -> Layers:
    """Read a case's volumes and thin them alike, to at most so many voxels a layer.

    A file that cannot be read, or lies on another grid than the first, is left out, and a note says so. The scan, if
    any, is shown beneath the maps, and not read where there are none.
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
            grid = grid or _Grid(voxels.shape, affine, most)
            if voxels.shape == grid.shape and np.allclose(affine, grid.affine, rtol=0, atol=GRID_LIMIT):
                found.append(grid.layer(key, kind, title, voxels))
            else:
                notes.append(f"The {title} lies on another grid than the maps and is not shown.")
        except UNREADABLE as error:
            # The reader's own words can hold a path, or what a header says of the patient.
            logger.warning("%s: the %s could not be read (%s)", case.name, key, type(error).__name__)
            notes.append(f"The {title} could not be read and is not shown.")
    if found and scan is None:
        notes.append(NO_SCAN)
    if found and found[-1].kind != "scan":
        # The viewer cuts off by threshold only what lies over something.
        nothing = np.zeros_like(found[0].voxels, dtype=np.uint8)
        found.append(Layer("ground", "ground", "", nothing, found[0].affine, 0.0, 1.0))
    found.sort(key=lambda layer: KINDS.index(layer.kind))
    return Layers(found, notes, grid.factors if grid else (1, 1, 1))


class _Grid:
    """The grid of a case's files, and how it is turned and thinned for the viewer."""

    def __init__(self, shape: tuple[int, ...], affine: NDArray[np.float64], most: int) -> None:
        self.shape, self.affine = shape, affine
        self.orientation = nib.io_orientation(check_affine(affine))
        turned = affine @ nib.orientations.inv_ornt_aff(self.orientation, shape)
        size = tuple(shape[int(axis)] for axis in np.argsort(self.orientation[:, 0]))
        self.factors = block_factors(size, turned, most)
        self.shown = shrink_affine(turned, self.factors)

    def layer(self, key: str, kind: str, title: str, voxels: NDArray[Any]) -> Layer:
        """What the viewer shows of a volume on this grid; ValueError when class indices do not lie in 0 to 255."""
        values, how, high = nib.apply_orientation(voxels, self.orientation), "mean", 1.0
        if kind == "seg":
            values, how = np.round(values).astype(np.int64), "max"
            high = float(values.max())
            if values.min() < 0 or high > 255:
                raise ValueError(f"class indices must lie in 0 to 255, got {values.min()} to {high:g}")
            values = values.astype(np.uint8)
        elif kind == "map":
            values = np.clip(values, 0, 1) if key in UNIT else display_scale(values)
        thinned = shrink(values, self.factors, how)
        if kind != "scan":
            return Layer(key, kind, title, thinned, self.shown, 0.0, high)
        if (voxels == np.round(voxels)).all():
            # Whole intensities, such as Hounsfield units, stay whole: they take less room.
            thinned = np.round(thinned)
        return Layer(key, kind, title, thinned, self.shown, *find_window(thinned))


def _title(key: str, kind: str) -> str:
    if kind != "map":
        return {"scan": "scan", "seg": "segmentation"}[kind]
    if key in UNIT:
        return QUANTITIES[key].split(",")[0]
    return f"{key.replace('_', ' ')}, share of its {DISPLAY_PERCENTILE:g}th percentile"
