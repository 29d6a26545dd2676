"""The table of cases: its columns, its cells, and the figures above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unoise_monai.report.site_cases import Row, SiteCase

LABELS = {
    "dice": "Dice",
    "spacing_mm": "voxel size, mm",
    "importance_mean": "importance, mean",
    "importance_p50": "importance, median",
    "importance_p95": "importance, 95th percentile",
    "importance_in_foreground": "importance inside",
    "importance_in_background": "importance outside",
    "peak_memory_gb": "peak memory, GB",
}
GROUPS = {"dice_": "Dice, {}", "volume_ml_": "{}, ml", "organ_": "{}, share"}
HIDDEN = ("organ_", "importance_p", "importance_mean", "peak_memory", "voxels", "spacing_mm", "device")
"""Beginnings of the columns that wait behind the choice of columns."""
NEVER = ("_sha256",)
"""Endings of the columns that only a case's own page shows."""


class Column(NamedTuple):
    """One column of the table."""

    key: str
    label: str
    number: bool
    """Whether all its values are numbers, and so sort as such."""
    shown: bool


class Cell(NamedTuple):
    """What a cell says, and the number that it sorts by (empty for none)."""

    text: str
    value: str


class Tile(NamedTuple):
    """One figure above the table."""

    label: str
    value: str
    note: str


def columns(cases: Sequence[SiteCase]) -> list[Column]:
    """The columns that the cases have values for, in the order of ``cohort.csv``, without hashes."""
    rows = [case.values for case in cases]
    numbers = number_columns(rows)
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value and not key.endswith(NEVER))
    return [Column(key, label_of(key), key in numbers, not key.startswith(HIDDEN)) for key in keys]


def label_of(key: str) -> str:
    """A column's name as people say it."""
    if key in LABELS:
        return LABELS[key]
    for start, words in GROUPS.items():
        if key.startswith(start) and len(key) > len(start):
            return words.format(key[len(start) :].replace("_", " "))
    return key.replace("_", " ")


def number_of(value: str) -> float | None:
    """A cell as a number, NaN included; None where it is none."""
    try:
        return float(value)
    except ValueError:
        return None


def number_columns(rows: Sequence[Row]) -> set[str]:
    """The columns that hold numbers, and nothing else where they hold something."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for key, value in row.items():
            values.setdefault(key, []).extend([value] if value else [])
    return {key for key, found in values.items() if found and all(number_of(value) is not None for value in found)}


def cell(row: Row, column: Column) -> Cell:
    """A row's cell of a column."""
    text = row.get(column.key, "")
    number = number_of(text) if column.number else None
    if number is None:
        return Cell(text or "-", "")
    return Cell(short(number), "" if math.isnan(number) else repr(number))


def show(value: str) -> str:
    """A number of a table as ``short`` writes it, anything else as it is."""
    number = number_of(value)
    return value if number is None else short(number)


def short(number: float) -> str:
    """A number as a table shows it: three figures or so, whole ones whole."""
    if not math.isfinite(number):
        return "-"
    if number == round(number) and abs(number) < 1e6:
        return str(round(number))
    if abs(number) >= 1e6 or abs(number) < 5e-4:
        return f"{number:.2e}"
    return f"{number:.{0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 3}f}"


def tiles(cases: Sequence[SiteCase]) -> list[Tile]:
    """The figures above the table: how many cases, how good, how fast."""
    failed = sum(case.status != "done" for case in cases)
    found = [
        Tile("cases done", str(len(cases) - failed), f"of {len(cases)}"),
        Tile("failed", str(failed), "see the reasons below" if failed else "none"),
    ]
    for key, label in (
        ("dice", "Dice"),
        ("importance_in_foreground", "importance inside"),
        ("importance_in_background", "importance outside"),
        ("seconds", "seconds a case"),
    ):
        values = _values(cases, key)
        if values.size:
            spread = f"median {short(float(np.median(values)))}, {short(values.min())} to {short(values.max())}"
            found.append(Tile(f"{label}, mean", short(float(values.mean())), spread))
    return found


def class_names(cases: Sequence[SiteCase]) -> list[str]:
    """The classes above 0, in their order, as the columns of volumes name them."""
    keys = dict.fromkeys(key for case in cases for key in case.values if key.startswith("volume_ml_"))
    return [key.removeprefix("volume_ml_").replace("_", " ") for key in keys]


def _values(cases: Sequence[SiteCase], key: str) -> np.ndarray:
    numbers = [number_of(case.values.get(key, "")) for case in cases]
    return np.array([number for number in numbers if number is not None and math.isfinite(number)])
