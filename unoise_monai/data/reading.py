"""Reads volumes, on every route, and refuses what a network must not see, naming the case and the file."""

import gzip
import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from unoise_monai.data.cases import stem
from unoise_monai.data.dicom import Grid, check_series, only_series, read_series
from unoise_monai.data.headers import (
    DICOM,
    NIFTI,
    VOLUMES,
    CaseError,
    check_header,
    itk_affine,
    itk_reader,
    kind_of,
    one_line,
    without_itk_warnings,
)

logger = logging.getLogger(__name__)

Source: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A volume's file, the folder of one DICOM series, the files of its slices, or one file a channel."""
GRID_TOLERANCE = 0.1
"""How far, in voxels, a label may lie off its image: writers of files round their affines differently."""
LARGEST_INTENSITY = 1e12
"""Mean and variance of larger ones overflow float32."""
SEPARATOR = "\0"
"""Between paths in one text: no path has it."""


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a case: its image's file name without the extension, or the folder's name of a DICOM series.

    Raises:
        CaseError: when nothing is left for a name.
    """
    file = Path(path)
    if file.name in ("", ".."):
        file = file.resolve()
    if not (name := file.name if file.is_dir() else stem(file.name)):
        raise CaseError(f"path must name a case, got {os.fspath(path)!r}")
    return name


def load_volume(source: Source, spacing_mm: Sequence[float] | None = None, channels: int | None = 1) -> MetaTensor:
    """The volume of a file or of a DICOM series, once its headers have passed every check.

    Args:
        source: see `Source`.
        spacing_mm: see `check_grid`.
        channels: how many there must be; None for any number.

    Shape:
        ``(X, Y, Z)`` as stored, or ``(C, X, Y, Z)`` where there are channels, float32, with the affine in RAS mm;
        ``meta["filename_or_obj"]`` is the file, that of the first channel, or the folder of the slices.

    Raises:
        CaseError: see `check_header` and `check_series`; when a file's voxels are cut off or damaged. The message names
            a file, but nothing of a series, whose folders often have patients' names.
    """
    if files := _channel_files(source):
        return _stacked(files, spacing_mm, channels)
    slices, path = _slices(source)
    if slices:
        if channels not in (None, 1):
            raise CaseError(f"DICOM series must be of {channels} channels, got one")
        voxels, affine = read_series(slices, spacing_mm)
    else:
        check_header(path, spacing_mm, channels)
        try:
            voxels, affine = _read_nifti(path) if path.name.lower().endswith(NIFTI) else _read_itk(path)
        # Readers raise what their libraries raise: zlib, nibabel, ITK and OS errors of every kind.
        except Exception as error:
            raise CaseError(f"file {path} is unreadable: {one_line(error)}") from error
    meta = {
        "affine": affine,
        "original_affine": affine,
        "spatial_shape": np.array(voxels.shape[-3:]),
        "original_channel_dim": float("nan"),
        "space": "RAS",
        "filename_or_obj": str(path),
    }
    return MetaTensor.ensure_torch_and_prune_meta(np.ascontiguousarray(voxels, dtype=np.float32), meta)


def _channel_files(source: Source) -> list[Path]:
    """The files of several channels; none where the source is something else."""
    files = [] if isinstance(source, (str, os.PathLike)) else [Path(each) for each in source]
    return files if all(file.name.lower().endswith(VOLUMES) for file in files) else []


def _stacked(files: Sequence[Path], spacing_mm: Sequence[float] | None, channels: int | None) -> MetaTensor:
    """Channels of a file each, ``(C, X, Y, Z)``, on the grid of the first."""
    if channels not in (None, len(files)):
        raise CaseError(f"file {files[0]} must be one of {channels} channels, got {len(files)} files")
    first, *others = [load_volume(file, spacing_mm) for file in files]
    for file, other in zip(files[1:], others, strict=True):
        check_same_grid(f"file {file}", grid_of(other), "the first channel", grid_of(first))
    stacked = MetaTensor(torch.stack([each.as_tensor() for each in (first, *others)]), meta=first.meta)
    return stacked if len(files) > 1 else stacked[0]


def load_again(meta: Mapping[str, Any]) -> MetaTensor:
    """The volume ``(X, Y, Z)`` that a map belongs to, as it is stored; of several channels the first.

    Args:
        meta: of the map: where `LoadCased` read its image, else MONAI's ``filename_or_obj`` alone.
    """
    files = str(meta.get("source", meta["filename_or_obj"])).split(SEPARATOR)
    volume = load_volume(files if len(files) > 1 else files[0], channels=None)
    return volume if volume.ndim == 3 else volume[0]


def _slices(source: Source) -> tuple[list[Path], Path]:
    """The slices of a series, none where it is a file; and the file, or the folder of the slices."""
    if not isinstance(source, (str, os.PathLike)):
        slices = [Path(each) for each in source]
        return slices, slices[0].parent
    path = Path(source)
    if kind_of(path) == "folder":
        return list(only_series(path).files), path
    return [path] if path.name.lower().endswith(DICOM) and kind_of(path) == "file" else [], path


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels, channels first where there are any, and affine as nibabel gives them.

    MONAI takes the q-form's affine where ``pixdim`` differs by 1e-5: what is written there lies beside the file's grid.
    """
    if path.name.lower().endswith(".gz"):
        # To the checksum, which nibabel, stopping at the last voxel, never sees.
        with gzip.open(path) as file:
            while file.read(2**20):
                pass
    image = nib.load(path)
    with np.errstate(over="ignore"):
        voxels = np.asarray(image.dataobj).astype(np.float32)
    return voxels if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0), image.affine


def _read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    reader = itk_reader(path)
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    with without_itk_warnings():
        image = reader.Execute()
    return SimpleITK.GetArrayFromImage(image).T, itk_affine(image)


def grid_of(volume: MetaTensor) -> Grid:
    """The grid of a volume ``(..., X, Y, Z)``."""
    return tuple(volume.shape[-3:]), np.asarray(volume.affine, dtype=np.float64)


def check_same_grid(name: str, grid: Grid, source: str, source_grid: Grid, limit: float = GRID_TOLERANCE) -> None:
    """Refuse a volume that does not lie on the grid of another.

    Args:
        name: of the volume; begins the message.
        grid: its own.
        source: name of the other volume.
        source_grid: that of the other.
        limit: how far their corners may lie apart, in voxels of the other volume.

    Raises:
        CaseError: when the shapes differ, or corners lie farther apart.
    """
    (shape, affine), (source_shape, source_affine) = grid, source_grid
    rule = f"{name} must lie on the grid of {source}"
    if tuple(shape) != tuple(source_shape):
        raise CaseError(f"{rule}, of shape {tuple(source_shape)}, got shape {tuple(shape)}")
    corners = np.array(list(product(*((0, side - 1) for side in shape))))
    steps_mm = apply_affine(affine, corners) - apply_affine(source_affine, corners)
    apart_mm = float(np.linalg.norm(steps_mm, axis=1).max())
    if not apart_mm <= limit * voxel_sizes(source_affine).min():
        raise CaseError(f"{rule}, got corners {apart_mm:.3g} mm apart")


def check_item(item: Mapping[Any, Any]) -> None:
    """Refuse a case whose image or label, by the headers alone, cannot be loaded, or which lie on different grids.

    Raises:
        CaseError: see `LoadCased`.
    """
    _refuse_fault(item)
    grids: dict[Hashable, Grid] = {}
    for key in ("image", "label"):
        if key in item:
            with _naming(item["case"], key):
                files = _channel_files(item[key])
                slices, path = ([], files[0]) if files else _slices(item[key])
                if slices:
                    grids[key] = check_series(slices)[1]
                else:
                    header = check_header(path, channels=None if key == "image" else 1)
                    grids[key] = header.shape, header.affine
    _check_label_grid(item, grids)


class LoadCased(MapTransform):
    """Load a case's volumes with their geometry and refuse what a network must not see.

    An empty foreground is allowed, but reported in the log. A volume that is loaded already passes as it is.

    Args:
        keys: the volumes to load, each a `Source`; a key that the case lacks is skipped, so that unlabelled cases pass.
        labels: how many label values the task has, background included; other values are refused.
        spacing_mm: see `check_grid`.
        channels: of the image: in one file, or one file each.

    Shape:
        each key becomes a `MetaTensor` ``(C, X, Y, Z)``, float32, the label with one channel; its ``meta`` has that of
        `load_volume`, the case's name as ``case``, and as ``source`` what `load_again` reads.

    Raises:
        CaseError: when the search for cases found a fault; see `load_volume`; when a volume holds NaN or infinite
            voxels, is an image of one value or of values beyond 1e12, or has label values that the task does not have;
            when image and label lie on different grids.
    """

    def __init__(
        self, keys: KeysCollection, labels: int, spacing_mm: Sequence[float] | None = None, channels: int | None = 1
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.labels, self.spacing_mm, self.channels = labels, spacing_mm, channels

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        d = dict(data)
        if "case" not in d:
            image = d["image"]
            path = Path(image if isinstance(image, (str, os.PathLike)) else image[0])
            slices = path != Path(str(image)) and not _channel_files(image)
            d["case"] = case_name(path.parent if slices else path)
        case = d["case"]
        _refuse_fault(d)
        grids: dict[Hashable, Grid] = {}
        for key in self.key_iterator(d):
            # Whoever needs the volume as it is stored, too, has read and checked it already.
            if isinstance(d[key], MetaTensor):
                continue
            with _naming(case, key):
                volume = load_volume(d[key], self.spacing_mm, 1 if key == "label" else self.channels)
                if fault := self._fault(case, key, volume):
                    raise CaseError(f"{_described(d[key])} {fault}")
            files = [d[key]] if isinstance(d[key], (str, os.PathLike)) else d[key]
            # Texts, of which MONAI makes batches. Two series of one folder have the same file name there.
            volume.meta |= {"case": case, "source": SEPARATOR.join(map(str, files))}
            grids[key], d[key] = grid_of(volume), volume if volume.ndim == 4 else volume[None]
        _check_label_grid({**data, "case": case}, grids)
        return d

    def _fault(self, case: str, key: Hashable, volume: MetaTensor) -> str:
        """What is wrong with the voxels, as the end of a sentence; else empty."""
        if bad := int((~torch.isfinite(volume)).sum()):
            return f"must hold finite voxels, got {bad} NaN or infinite"
        if key != "label":
            low, high = float(volume.min()), float(volume.max())
            if low == high:
                return f"must not be constant, got {low:g} everywhere"
            if max(-low, high) > LARGEST_INTENSITY:
                return f"must hold intensities up to {LARGEST_INTENSITY:g}, got {low:g} to {high:g}"
            return ""
        values = torch.unique(volume.as_tensor()).tolist()
        if extra := [value for value in values if value not in range(self.labels)]:
            return f"must hold the task's values 0 to {self.labels - 1}, got {extra[:5]}"
        if values == [0]:
            logger.warning("case %s: the label has no foreground", case)
        return ""


def _refuse_fault(item: Mapping[Hashable, Any]) -> None:
    if fault := item.get("fault"):
        raise CaseError(f"case {item['case']}: {fault}")


@contextmanager
def _naming(case: str, key: Hashable) -> Iterator[None]:
    """Puts the case's name, and of a file what it is read for, before the message of an error."""
    try:
        yield
    except CaseError as error:
        kind = f"{key} " if str(error).startswith("f") else ""
        raise CaseError(f"case {case}: {kind}{error}") from error


def _described(source: Source) -> str:
    if files := _channel_files(source):
        return f"file {files[0]} or another channel"
    is_file = isinstance(source, (str, os.PathLike)) and kind_of(Path(source)) == "file"
    return f"file {source}" if is_file else "DICOM series"


def _check_label_grid(item: Mapping[Hashable, Any], grids: Mapping[Hashable, Grid]) -> None:
    if "image" in grids and "label" in grids:
        name = f"case {item['case']}: label {_described(item['label'])}"
        check_same_grid(name, grids["label"], "the image", grids["image"])


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
