"""Reads volumes as they are stored, and refuses what a network must not see, naming the case and the file."""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import re
import stat
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import Compose, LoadImage, MapTransform
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def kind_of(path: Path) -> str:
    """``"file"``, ``"folder"`` or ``"pipe or device"``, links followed; empty where nothing is, or nothing can be."""
    try:
        mode = path.stat().st_mode
    # ValueError: a character that no path of this system can have.
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "pipe or device"


VOXEL_SIZES_MM = (1e-3, 1e3)
FARTHEST_MM = 1e6
"""Of a volume's first voxel from the origin: beyond it, resampling loses the place of the voxels to rounding."""
LEAST_DETERMINANT = 0.1
"""Of the directions of a volume's axes: 1 for right angles, 0 where they lie in a plane."""
LARGEST_INTENSITY = 1e12
"""Mean and variance of larger ones overflow float32."""


def affine_fault(affine: NDArray[np.float64]) -> str:
    """What keeps a volume with this affine from having a place in space, as the end of a sentence; else empty."""
    if not np.isfinite(affine).all():
        return "must have a finite affine, got NaN or infinite numbers"
    sizes = voxel_sizes(affine)
    least, most = VOXEL_SIZES_MM
    if not (least <= sizes.min() and sizes.max() <= most):
        return f"must have voxel sizes from {least:g} to {most:g} mm, got {', '.join(f'{size:g}' for size in sizes)}"
    determinant = abs(float(np.linalg.det(affine[:3, :3] / sizes)))
    if determinant < LEAST_DETERMINANT:
        return (
            "must have an affine whose axes stand apart, with a determinant of their directions of at least "
            f"{LEAST_DETERMINANT}, got {determinant:.3g}: it is singular or too sheared"
        )
    farthest = float(np.abs(affine[:3, 3]).max())
    if farthest > FARTHEST_MM:
        return f"must lie within {FARTHEST_MM:g} mm of the origin, got {farthest:g} mm"
    return ""


def intensity_fault(low: float, high: float) -> str:
    """What keeps an image with this least and largest voxel from a network; else empty."""
    if low == high:
        return f"must not be constant, got {low:g} everywhere"
    if max(-low, high) > LARGEST_INTENSITY:
        return f"must hold intensities up to {LARGEST_INTENSITY:g}, got {low:g} to {high:g}"
    return ""


NIFTI = (".nii", ".nii.gz", ".hdr")


class StoredNifti(NibabelReader):
    """MONAI's reader of NIfTI, with the affine that nibabel gives.

    MONAI's own replaces the s-form with the q-form where its voxel sizes differ by 1e-5 from those in ``pixdim``, and
    what is written on that grid would not lie on the file's.
    """

    def read(self, data: Sequence[str] | str, **kwargs: Any) -> Any:
        """The image, whose voxels are not read yet.

        Raises:
            ValueError: when its voxels are colours, complex, or of more bits than a number of 64.
        """
        image = super().read(data, **kwargs)
        kind = image.get_data_dtype()
        if kind.kind not in "iuf" or kind.itemsize > 8:
            raise ValueError(f"must hold one real number a voxel, got {kind}")
        return image

    def _get_affine(self, img: Any) -> NDArray[np.float64]:
        return np.array(nib.load(img.get_filename()).affine)


def load_volume(path: Path) -> MetaTensor:
    """The volume of a file, or of a folder with a DICOM series.

    Shape:
        as stored, float32, with the affine in RAS mm.

    Raises:
        Exception: whatever the reader of the format raises on a bad file, of every kind.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        check_gzip(path)
    return LoadImage(image_only=True, dtype=np.float32)(str(path), StoredNifti() if name.endswith(NIFTI) else None)


def check_gzip(path: Path) -> None:
    """Read a file to its checksum, which readers that stop at the last voxel never see.

    Raises:
        OSError: when the checksum is another, or the file no gzip.
        EOFError: when it is cut off.
        zlib.error: when it is damaged.
    """
    with gzip.open(path) as file:
        while file.read(2**20):
            pass


def said(error: BaseException) -> str:
    """What an error says, in one line, the same in every run: without addresses and lines of C++."""
    return " ".join(re.sub(r"\(0x[0-9a-f]+\)|\S+\.[ch]xx:\d+:", "", str(error)).split())


DICOM = (".dcm", ".ima")
EXTENSIONS = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", *DICOM)

GRID_TOLERANCE = 0.1
"""How far, in voxels, a label may lie off its image: writers of files round their affines differently."""


class CaseError(ValueError):
    """A case that cannot be used; the message names the case, the file, the rule and the value."""


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a case: its image's file name without the extension, or the folder's name of a DICOM series.

    Raises:
        CaseError: when nothing is left for a name.
    """
    file = Path(path)
    if file.name in ("", ".."):
        file = file.resolve()
    name = file.name
    if not file.is_dir():
        extension = next((each for each in EXTENSIONS if name.lower().endswith(each)), "")
        name = name[: len(name) - len(extension)]
    if not name:
        raise CaseError(f"path must name a case, got {os.fspath(path)!r}")
    return name


def check_grids(case: Mapping[str, str]) -> None:
    """Read the headers of a case: both files there, readable, three-dimensional, on the same grid.

    Raises:
        CaseError: when one of these does not hold.
    """
    grids = {}
    for key in ("image", "label"):
        if key not in case:
            continue
        path = Path(case[key])
        if not path.is_file():
            raise CaseError(f"case {case['case']}: {key} file {path} is missing")
        try:
            header = nib.load(path)
        except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
            raise CaseError(f"case {case['case']}: {key} file {path} is unreadable: {said(error)}") from error
        _check_dimensions(case["case"], key, path, header.shape)
        _check_affine(case["case"], key, path, header.affine)
        grids[key] = (header.shape, header.affine)
    if "label" in grids:
        _check_same_grid(case["case"], case["label"], grids["image"], grids["label"])


class LoadCased(MapTransform):
    """Load a case's volumes with their geometry and refuse what a network must not see.

    An empty foreground is allowed, but reported in the log. A volume that is loaded already passes as it is.

    Args:
        keys: the volumes to load; a key that the case lacks is skipped, so that unlabelled cases pass.
        labels: how many label values the task has, background included; other values are refused.

    Shape:
        each key becomes a `MetaTensor` ``(1, X, Y, Z)``, float32.

    Raises:
        CaseError: when a file is missing or unreadable, not three-dimensional, holds NaN or infinite voxels, is an
            image of one value or of values beyond 1e12, has no place in space (`affine_fault`), has label values that
            the task does not have, or image and label lie on different grids.
    """

    def __init__(self, keys: KeysCollection, labels: int) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.labels = labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        case = d["case"] if "case" in d else d.setdefault("case", case_name(d["image"]))
        grids = {}
        for key in self.key_iterator(d):
            # Whoever needs the volume as it is stored, too, has read and checked it already.
            if isinstance(d[key], MetaTensor):
                continue
            path = Path(str(d[key]))
            volume = self._loaded(case, key, path)
            _check_dimensions(case, key, path, volume.shape)
            _check_affine(case, key, path, np.asarray(volume.affine))
            bad = int((~torch.isfinite(volume)).sum())
            if bad:
                raise CaseError(f"case {case}: {key} file {path} must hold finite voxels, got {bad} NaN or infinite")
            grids[key] = (tuple(volume.shape), np.asarray(volume.affine))
            if key == "label":
                self._check_labels(case, path, volume)
            elif fault := intensity_fault(float(volume.min()), float(volume.max())):
                raise CaseError(f"case {case}: {key} file {path} {fault}")
            d[key] = volume[None]
        if "label" in grids and "image" in grids:
            _check_same_grid(case, d["label"].meta["filename_or_obj"], grids["image"], grids["label"])
        return d

    def _loaded(self, case: str, key: Hashable, path: Path) -> MetaTensor:
        if not (kind := kind_of(path)):
            raise CaseError(f"case {case}: {key} file {path} is missing")
        if kind not in ("file", "folder"):
            raise CaseError(f"case {case}: {key} file {path} must be a file or a folder of slices, got a {kind}")
        try:
            return load_volume(path)
        # Readers raise what their libraries raise: zlib, nibabel, ITK and OS errors of every kind.
        except Exception as error:
            raise CaseError(f"case {case}: {key} file {path} is unreadable: {said(error)}") from error

    def _check_labels(self, case: str, path: Path, volume: MetaTensor) -> None:
        values = torch.unique(volume.as_tensor()).tolist()
        extra = [value for value in values if value not in range(self.labels)]
        if extra:
            raise CaseError(
                f"case {case}: label file {path} must hold the task's values 0 to {self.labels - 1}, got {extra[:5]}"
            )
        if values == [0]:
            logger.warning("case %s: the label has no foreground", case)


class CaseCompose(Compose):
    """Transforms in their order, from which a `CaseError` comes out as it is; MONAI's own wraps it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            cause = error.__cause__
            if not isinstance(cause, CaseError):
                raise
        raise cause


def _check_dimensions(case: str, key: Hashable, path: Path, shape: Sequence[int]) -> None:
    if len(shape) != 3 or min(shape) < 2:
        raise CaseError(f"case {case}: {key} file {path} must be a 3-D volume, got shape {tuple(shape)}")


def _check_affine(case: str, key: Hashable, path: Path, affine: NDArray[np.float64]) -> None:
    if fault := affine_fault(affine):
        raise CaseError(f"case {case}: {key} file {path} {fault}")


def _check_same_grid(
    case: str, path: str | Path, image: tuple[Sequence[int], np.ndarray], label: tuple[Sequence[int], np.ndarray]
) -> None:
    if tuple(image[0]) != tuple(label[0]):
        raise CaseError(
            f"case {case}: label file {path} must lie on the image's grid, got shape {tuple(label[0])}"
            f" for an image of {tuple(image[0])}"
        )
    corners = np.array(list(itertools.product(*((0, side - 1) for side in image[0]))))
    steps = apply_affine(image[1], corners) - apply_affine(label[1], corners)
    apart_mm = float(np.linalg.norm(steps, axis=1).max())
    if apart_mm > GRID_TOLERANCE * voxel_sizes(image[1]).min():
        raise CaseError(
            f"case {case}: label file {path} must lie on the image's grid, got corners {apart_mm:.3g} mm apart"
        )
