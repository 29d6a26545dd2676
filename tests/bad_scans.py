"""Scans that were once read silently wrong on some route: writers of each, and what every route must answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_volumes import UNITS, nifti, put
from dicom_slices import slices, write_series


def series(folder: Path, heights_mm: list[float], **others: object) -> None:
    write_series(folder, np.resize(slices(), (len(heights_mm), 10, 12)), heights_mm=heights_mm, **others)


def turning(folder: Path) -> None:
    """As a series around an axis, whose planes are all of one series."""
    paths = write_series(folder)
    flat = write_series(folder.with_name("flat"), tags={"0020|0037": "1\\0\\0\\0\\1\\0"})
    paths[3].write_bytes(flat[3].read_bytes())


def in_unit(folder: Path, unit: int) -> None:
    folder.mkdir()
    (folder / "scan.nii").write_bytes(put(nifti(), {UNITS: bytes([unit])}))


def two_series(folder: Path) -> None:
    write_series(folder, names="a{}.dcm")
    write_series(folder, slices(3), uid="1.2.3", names="b{}.dcm")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "two series": (two_series, "must hold one DICOM series, got 2"),
    "a missing slice": (lambda f: series(f, [0, 2, 4, 8, 10, 12]), "got 4 mm between slices 3 and 4 of 6"),
    "every slice twice": (
        lambda f: (series(f, [0, 2, 4, 6]), series(f, [0, 2, 4, 6], names="again{}.dcm")),
        "must have one slice a place",
    ),
    "one slice doubled": (lambda f: series(f, [0, 2, 2, 4, 6]), "got slices 2 and 3 of 5 at the same one"),
    "two echoes": (lambda f: series(f, [0, 0, 2, 2, 4, 4]), "must have one slice a place"),
    "an orientation that turns": (turning, "must have slices of one orientation"),
    "metres": (lambda f: in_unit(f, 1), "must give its lengths in mm, got meter"),
    "microns": (lambda f: in_unit(f, 3), "must give its lengths in mm, got micron"),
}
