"""Sorts DICOM files into series, each with its slices in their order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.names import series_name
from unoise_monai.cohort.search import Entry

SERIES_UID, POSITION, ORIENTATION = "0020|000e", "0020|0032", "0020|0037"
PIXEL_SPACING, PHOTOMETRIC = "0028|0030", "0028|0004"
HEAD_BYTES = 2**16
BROKEN_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|.{4})([0-9][0-9.]{4,63})", re.DOTALL)
BROKEN_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]{5,64})", re.DOTALL)
NO_SCAN = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|11|66|67|88|104|481\.[3-9])(\..*)?)\.?")
"""Classes without a picture of their own: indices, waveforms, presentations, reports, documents, plans."""
UNREADABLE = "must have readable slices, got a DICOM file that is cut off, damaged or has no picture"


@dataclass(frozen=True)
class Slice:
    """What the header of a DICOM file tells of its place; numbers that it lacks are NaN.

    Args:
        path: of the file.
        uid: of its series.
        position: of the centre of its first voxel, ``(3,)`` LPS mm.
        axes: direction along its rows and along its columns, ``(2, 3)``.
        spacing_mm: between its rows, and between its columns.
        shape: columns, rows and, in the file, frames.
        kind: how its pixels are coded, such as ``MONOCHROME2``.
    """

    path: Path
    uid: str
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    shape: tuple[int, ...]
    kind: str

    @property
    def height_mm(self) -> float:
        """How far up the normal of its plane it lies."""
        return float(self.position @ np.cross(*self.axes))


def read_slice(path: Path) -> Slice:
    """The header of a DICOM file, without its pixels.

    Raises:
        RuntimeError: when GDCM cannot read a picture from it.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
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


def find_series(entries: Sequence[Entry]) -> list[CohortCase]:
    """One case for each series among DICOM files, whatever folders they lie in.

    Files without a picture, such as reports and indices, are left out. A file that cannot be read fails its series, of
    which a slice would be missing. Where it does not tell which that is, it fails all that have slices in its folder,
    and is a case by itself where none have.
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
            head = _head(entry.path)
            if (kind := BROKEN_CLASS.search(head)) and NO_SCAN.fullmatch(kind[1]):
                continue
            if told := BROKEN_UID.search(head):
                problems[told[1].decode().rstrip(".")] = UNREADABLE
            else:
                orphans[folder] = UNREADABLE
    for folder, problem in orphans.items():
        beside = [uid for uid, found in slices.items() if any(each.path.parent == folder for each in found)]
        problems |= dict.fromkeys(beside or [f"folder {folder.name}"], problem)
    cases = []
    for uid in sorted(slices.keys() | problems.keys()):
        name = series_name(uid)
        files = () if uid in problems else tuple(each.path for each in _in_order(slices[uid]))
        cases.append(CohortCase(name, files, name, series=True, problem=problems.get(uid, "")))
    return cases


def _in_order(slices: list[Slice]) -> list[Slice]:
    """Up the normal, as far as headers tell; else by their paths."""
    heights = [0.0 if np.isnan(each.height_mm) else each.height_mm for each in slices]
    return [each for _, _, each in sorted(zip(heights, map(str, (s.path for s in slices)), slices, strict=True))]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
