"""DICOM: files sorted into series, and a series as one volume with its place in space."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from unoise_monai.data.cases import Case, Entry, series_name, walk
from unoise_monai.data.headers import LPS_TO_RAS, CaseError, check_grid, itk_reader, without_itk_warnings
from unoise_monai.data.nifti import write_nifti

SERIES_UID, POSITION, ORIENTATION = "0020|000e", "0020|0032", "0020|0037"
PIXEL_SPACING, PHOTOMETRIC = "0028|0030", "0028|0004"
BROKEN_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|.{4})([0-9][0-9.]{4,63})", re.DOTALL)
BROKEN_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]{5,64})", re.DOTALL)
NO_SCAN = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|11|66|67|88|104|481\.[3-9])(\..*)?)\.?")
"""Classes without a picture of their own: indices, waveforms, presentations, reports, documents, plans."""
UNREADABLE = "must have readable slices, got a DICOM file that is cut off, damaged or has no picture"


@dataclass(frozen=True)
class Slice:
    """Where the header of a DICOM file puts its slice; numbers that it lacks are NaN."""

    path: Path
    uid: str
    """Of its series."""
    position: NDArray[np.float64]
    """Of the centre of its first voxel, ``(3,)`` LPS mm."""
    axes: NDArray[np.float64]
    """Direction along its rows and along its columns, ``(2, 3)``."""
    spacing_mm: NDArray[np.float64]
    """Between its rows, and between its columns."""
    shape: tuple[int, ...]
    """Columns, rows and, in the file, frames."""
    kind: str
    """How its pixels are coded, such as ``MONOCHROME2``."""

    @property
    def height_mm(self) -> float:
        """Along the normal of its plane."""
        return float(self.position @ np.cross(*self.axes))


def read_slice(path: Path) -> Slice:
    """The header of a DICOM file, without its pixels.

    Raises:
        RuntimeError: when GDCM cannot read a picture from it.
    """
    reader = itk_reader(path, "GDCMImageIO")
    reader.ReadImageInformation()

    def text(tag: str) -> str:
        return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> NDArray[np.float64]:
        try:
            values = np.array([float(word) for word in text(tag).split("\\")])
        except ValueError:
            values = np.array([])
        return values if values.shape == (count,) else np.full(count, np.nan)

    axes, spacing_mm = numbers(ORIENTATION, 6).reshape(2, 3), numbers(PIXEL_SPACING, 2)
    return Slice(
        path, text(SERIES_UID), numbers(POSITION, 3), axes, spacing_mm, tuple(reader.GetSize()), text(PHOTOMETRIC)
    )


def find_series(entries: Sequence[Entry]) -> list[Case]:
    """One case for each series among DICOM files, whatever folders they lie in.

    Files without a picture, such as reports and indices, are left out. A file that cannot be read fails its series;
    where that is not known, all series that have slices in its folder; where none have, it is a case that fails.
    """
    slices: dict[str, list[Slice]] = defaultdict(list)
    problems: dict[str, str] = {}
    orphans: dict[Path, str] = {}
    for entry in entries:
        folder = entry.path.parent
        if entry.problem:
            orphans[folder] = entry.problem
            continue
        try:
            found = read_slice(entry.path)
            slices[found.uid or f"folder {entry.place.parent}"].append(found)
        except RuntimeError:
            try:
                with entry.path.open("rb") as file:
                    head = file.read(2**16)
            except OSError:
                head = b""
            if (kind := BROKEN_CLASS.search(head)) and NO_SCAN.fullmatch(kind[1]):
                continue
            if broken := BROKEN_UID.search(head):
                problems[broken[1].decode().rstrip(".")] = UNREADABLE
            else:
                orphans[folder] = UNREADABLE
    for folder, problem in orphans.items():
        beside = [uid for uid, found in slices.items() if any(each.path.parent == folder for each in found)]
        problems |= dict.fromkeys(beside or [f"folder {folder.name}"], problem)
    cases = []
    for uid in sorted(slices.keys() | problems.keys()):
        name = series_name(uid)
        # Up the normal, or by their paths where headers have no position.
        in_order = sorted(slices[uid], key=lambda each: (np.nan_to_num(each.height_mm), str(each.path)))
        files = () if uid in problems else tuple(each.path for each in in_order)
        cases.append(Case(name, files, name, series=True, problem=problems.get(uid, "")))
    return cases


def only_series(folder: Path) -> Case:
    """The one series in a folder and all below it.

    Raises:
        CaseError: when there is none, there are several, or it has a problem.
    """
    found = find_series([entry for entry in walk(folder.resolve()) if entry.is_slice])
    if len(found) != 1:
        raise CaseError(f"folder {folder} must hold one DICOM series, got {len(found)}")
    if found[0].problem:
        raise CaseError(f"DICOM series {found[0].problem}")
    return found[0]


GAP_SHARE, GAP_MM = 0.01, 0.02
"""How far a gap between slices may be off the usual one: a share of it, or what headers round to."""
DRIFT_SHARE = 0.1
"""How far a slice may lie off the line from the first to the last, as a share of a pixel."""
Grid = tuple[tuple[int, ...], NDArray[np.float64]]
"""A volume's shape ``(X, Y, Z)`` and its affine ``(4, 4)``, voxel indices to RAS mm."""


def check_series(files: Sequence[Path], spacing_mm: Sequence[float] | None = None) -> tuple[list[Path], Grid]:
    """The slices of a series from the lowest up its normal, and the grid of its volume, by their headers alone.

    The affine is that of the slices' positions and orientation, so that a tilted gantry gives a sheared one.

    Args:
        files: the slices, in any order.
        spacing_mm: see `check_grid`.

    Raises:
        CaseError: when the series has one slice, an unreadable slice, colours, many frames a file, or no position; when
            its slices differ in size, spacing or orientation, lie at the same place or not on one line, or one is
            missing; see `check_grid`.
    """
    try:
        with without_itk_warnings():
            slices = [read_slice(file) for file in files]
    except RuntimeError as error:
        raise CaseError("DICOM series must have readable slices, got one that is damaged or missing") from error
    slices.sort(key=lambda each: each.height_mm)
    if fault := _slice_fault(slices) or _position_fault(slices):
        raise CaseError(f"DICOM series {fault}")
    shape, affine = (*slices[0].shape[:2], len(slices)), _affine(slices)
    check_grid("DICOM series", shape, affine, spacing_mm)
    return [each.path for each in slices], (shape, affine)


def read_series(
    files: Sequence[Path], spacing_mm: Sequence[float] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The voxels ``(X, Y, Z)`` of a series, rescaled by each slice's own header (HU for CT), and its affine.

    Raises:
        CaseError: see `check_series`; when pixels are damaged.
    """
    files, (_, affine) = check_series(files, spacing_mm)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(file) for file in files])
    # Not the first slice's type: other slices' slopes may need a wider one.
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        with without_itk_warnings():
            voxels = SimpleITK.GetArrayFromImage(reader.Execute()).T
    except RuntimeError as error:
        raise CaseError("DICOM series must have readable slices, got pixels that are damaged or missing") from error
    return voxels, affine


def volume_file(case: Case, folder: Path) -> Path:
    """The file of a case's volume; a DICOM series is written to ``folder`` first, as ``.nii`` without compression.

    Raises:
        CaseError: when the search found that the case cannot be loaded; see `read_series`.
    """
    if case.problem:
        raise CaseError(f"case {case.name}: {case.fault}")
    if not case.series:
        return case.files[0]
    path = folder / f"{case.name}.nii"
    try:
        write_nifti(path, *read_series(case.files))
    except CaseError as error:
        raise CaseError(f"case {case.name}: {error}") from error
    return path


def _slice_fault(slices: list[Slice]) -> str:
    """Why the slices are not of one volume, as the end of a sentence; else empty."""
    first = slices[0]
    if len(slices) < 2:
        return f"must have at least 2 slices, got {len(slices)}"
    for each in slices:
        if each.shape[2:] not in ((), (1,)):
            return f"must have one slice a file, got a file of {each.shape[2]} frames: convert it to NIfTI first"
        if each.kind != "MONOCHROME2":
            return f"must have pixels of one grey value (MONOCHROME2), got {each.kind[:16] or 'none'}"
        for name, values in (("position", each.position), ("orientation", each.axes), ("spacing", each.spacing_mm)):
            if not np.isfinite(values).all():
                return f"must give every slice's {name}, got one without"
        if each.shape != first.shape:
            return f"must have slices of one size, got {first.shape[:2]} and {each.shape[:2]}"
        if np.abs(each.spacing_mm - first.spacing_mm).max() > 1e-4 * np.abs(first.spacing_mm).max():
            return f"must have slices of one spacing, got {first.spacing_mm.tolist()} and {each.spacing_mm.tolist()} mm"
        if np.abs(each.axes - first.axes).max() > 1e-3:
            return "must have slices of one orientation, got two: it may hold a localiser"
    if np.abs(first.axes @ first.axes.T - np.diag([1.0, 1.0])).max() > 1e-3:
        return "must have rows and columns at right angles, got an orientation without"
    return "" if first.spacing_mm.min() > 0 else f"must have pixels above 0 mm, got {first.spacing_mm.tolist()}"


def _position_fault(slices: list[Slice]) -> str:
    """What is wrong with the positions of slices in their order, as the end of a sentence; else empty."""
    gaps = np.diff([each.height_mm for each in slices])
    usual = float(np.median(gaps))
    if gaps.min() <= GAP_MM / 10:
        number = int(gaps.argmin()) + 1
        return f"must have one slice a place, got slices {number} and {number + 1} of {len(slices)} at the same one"
    off = np.abs(gaps - usual)
    if off.max() > max(GAP_SHARE * usual, GAP_MM):
        number = int(off.argmax()) + 1
        return (
            f"must have all its slices, {usual:g} mm apart, got {gaps[number - 1]:g} mm between slices {number} and "
            f"{number + 1} of {len(slices)}: one is missing, or slices are uneven"
        )
    places = np.array([each.position for each in slices])
    drift = np.linalg.norm(places - np.linspace(places[0], places[-1], len(slices)), axis=1).max()
    if drift > max(DRIFT_SHARE * slices[0].spacing_mm.min(), GAP_SHARE * usual * len(slices)):
        return f"must have its slices on one line, got one {drift:.3g} mm beside it"
    return ""


def _affine(slices: list[Slice]) -> NDArray[np.float64]:
    """Voxel indices ``(column, row, slice)`` to RAS mm."""
    first = slices[0]
    step = (slices[-1].position - first.position) / (len(slices) - 1)
    # The spacing between rows comes first, and is the step along a column.
    axes = [first.axes[0] * first.spacing_mm[1], first.axes[1] * first.spacing_mm[0], step]
    affine = from_matvec(LPS_TO_RAS @ np.stack(axes, axis=1), LPS_TO_RAS @ first.position)
    # As NIfTI headers keep it, so that all that is written lies on this very grid.
    return np.asarray(affine.astype(np.float32), dtype=np.float64)
