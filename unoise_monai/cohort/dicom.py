"""From the slices of a DICOM series to one volume with its place in space, and nothing else of their headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.series import Slice, read_slice
from unoise_monai.data.faults import affine_fault
from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.stored import check_memory
from unoise_monai.data.validation import CaseError

GAP_SHARE, GAP_MM = 0.01, 0.02
"""How far a gap between slices may be off the usual one: a share of it, or what headers round to."""
DRIFT_SHARE = 0.1
"""How far a slice may lie beside the line from the first to the last, as a share of a pixel."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def volume_file(case: CohortCase, folder: Path) -> Path:
    """The file to read of a case; a DICOM series is written to ``folder`` first, as ``.nii`` without compression.

    Its voxels are float32, rescaled slice by slice as their headers say (HU for CT); its affine is that of the slices'
    positions and orientation, so that a tilted gantry gives a sheared one.

    Raises:
        CaseError: when the search found that the case cannot be loaded, or vanished since.
        CaseError: when a series has one slice, an unreadable slice, colours, many frames a file, or no position.
        CaseError: when its slices differ in size, spacing or orientation, or two lie at the same place.
        CaseError: when a slice is missing, slices are not on one line, or the volume does not fit in memory.
    """
    if case.problem:
        what = "DICOM series" if case.series else f"file {case.shown}"
        raise CaseError(f"case {case.name}: {what} {case.problem}")
    if not case.series:
        return case.files[0]
    start = f"case {case.name}: DICOM series"
    with _without_warnings():
        try:
            slices = [read_slice(file) for file in case.files]
        except RuntimeError as error:
            raise CaseError(f"{start} must have readable slices, got one that is damaged or missing") from error
        fault = _slice_fault(slices) or _position_fault(sorted(slices, key=lambda each: each.height_mm))
        if fault:
            raise CaseError(f"{start} {fault}")
        slices.sort(key=lambda each: each.height_mm)
        affine = _affine(slices)
        if fault := affine_fault(affine):
            raise CaseError(f"{start} {fault}")
        check_memory(start, (*slices[0].shape[:2], len(slices)))
        reader = SimpleITK.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(each.path) for each in slices])
        # The first slice's type would cut off what other slices' own slopes make of theirs.
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        try:
            voxels = SimpleITK.GetArrayFromImage(reader.Execute()).T
        except RuntimeError as error:
            raise CaseError(f"{start} must have readable slices, got pixels that are damaged or missing") from error
    path = folder / f"{case.name}.nii"
    write_nifti(path, voxels, affine)
    return path


def _slice_fault(slices: list[Slice]) -> str:
    """What keeps the slices from being of one volume, as the end of a sentence; else empty."""
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
                return f"must tell every slice's {name}, got one without"
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
    """What is wrong with the places of slices in their order, as the end of a sentence; else empty."""
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
    return np.asarray(from_matvec(LPS_TO_RAS @ np.stack(axes, axis=1), LPS_TO_RAS @ first.position))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """ITK's own warnings name files, and go past every log to the terminal; what they warn of is checked here."""
    before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(before)
