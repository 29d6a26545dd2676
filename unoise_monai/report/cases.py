"""What a finished run left in its output, and the table of its cases."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from unoise_monai.handlers.savers import QUANTITIES

START = r"(?:[A-Za-z]:[\\/]|\\\\|~?/)"
PATH = re.compile(
    # In quotes, as Python's errors name files, it may hold spaces.
    rf"""(?P<quote>['"]){START}[^'"\n]+(?P=quote)"""
    # Elsewhere a slash needs a second one: the first can be of a fraction, a unit or a tag.
    r"""|(?<![\w.])(?:[A-Za-z]:[\\/]|\\\\|~?/[^\s/'"]+/)[^\s'",;)]*"""
)


def without_paths(text: str) -> str:
    """A text in which ``(path)`` stands for absolute paths: they tell names of people, of folders and of machines."""
    return PATH.sub("(path)", text)


PRIVATE = ("command", "input", "output", "argv", "cases", "host", "hostname", "user")
"""Keys that hold paths, or names of patients or people."""


def run_facts(output: Path) -> list[tuple[str, str]]:
    """Names and values of ``run.json``, without paths and names; none where there is no such file, or it is broken."""
    return list(_facts(_read(output), ""))


def run_quantity(output: Path) -> str | None:
    """What the run has written of the importance, such as ``tolerance``; None where ``run.json`` does not say."""
    settings = _read(output).get("settings")
    quantity = settings.get("quantity") if isinstance(settings, dict) else None
    return quantity if isinstance(quantity, str) else None


def _read(output: Path) -> dict[str, Any]:
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _facts(values: dict[str, Any], start: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if key.lower() in PRIVATE:
            continue
        name = f"{start}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _facts(value, f"{name}, ")
        elif isinstance(value, list):
            yield from _facts({name: ", ".join(map(str, value))}, "")
        elif key == "bundle":
            yield name, PurePath(str(value)).name
        elif value not in (None, "") and not set(str(value)) & set("/\\"):
            yield name, str(value)


Row = Mapping[str, str]
VOLUME = ".nii.gz"
SEGMENTATION = "seg"


@dataclass(frozen=True)
class SiteCase:
    """One case as the report shows it."""

    name: str
    page: str
    """Name of its files in the report, without an ending: safe in any file system and any link."""
    status: str
    """``done`` or ``failed``."""
    values: Row
    """Its row of ``cohort.csv``, without case and status."""
    failures: Sequence[Row]
    """Its rows of ``failures.csv``."""
    organs: Sequence[Row]
    """Its rows of ``organs.csv``, without the case."""
    maps: Mapping[str, Path]
    """Name of a quantity or a method to its volume; the run's own quantity, where there is one, first."""
    segmentation: Path | None
    pictures: Mapping[str, Path]
    """``mip``, ``montage``, ``<method>_mip``, ... to PNG files."""


def read_cases(output: Path) -> list[SiteCase]:
    """Every case of ``cohort.csv``, in its order, and after them what ``failures.csv`` alone names.

    Files are found beside the tables, in ``<case>/<case>_*``; a case whose name is no plain folder name, or whose
    files lie outside of the output, is shown without them.

    Args:
        output: what ``unoise explain`` wrote.

    Raises:
        FileNotFoundError: when it holds neither table.
        ValueError: when a table is no CSV in UTF-8, or has no column ``case``.
    """
    tables = {name: read_rows(output / f"{name}.csv") for name in ("cohort", "failures", "organs")}
    if not any((output / f"{name}.csv").is_file() for name in ("cohort", "failures")):
        raise FileNotFoundError(f"output must hold cohort.csv, got {output.name!r}")
    rows = {row["case"]: row for row in tables["cohort"]}
    names = dict.fromkeys([*rows, *(row["case"] for row in tables["failures"])])
    by_case: dict[str, dict[str, list[Row]]] = {table: {name: [] for name in names} for table in ("failures", "organs")}
    for table, found in by_case.items():
        for row in tables[table]:
            if row["case"] in found:
                found[row["case"]].append({key: value for key, value in row.items() if key != "case"})
    quantity = run_quantity(output)
    return [
        _case(output, name, quantity, rows.get(name), by_case["failures"][name], by_case["organs"][name])
        for name in names
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a column ``case``, without paths; none where there is no such file.

    Raises:
        ValueError: when the table is no CSV in UTF-8, or has no column ``case``.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} must be CSV in UTF-8: {error}") from error
    if names and "case" not in names:
        raise ValueError(f"{path.name} must have a column 'case', got {names[:10]}")
    # Cells beyond the header come under the key None.
    return [
        {key: value if key == "case" else without_paths(value) for key, value in row.items() if isinstance(key, str)}
        for row in rows
    ]


def page_name(case: str) -> str:
    """A file name for a case's page: the case's own where that is safe everywhere, else a like one, made unique."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", case.lower()).strip("_")[:60] or "case"
    # Case names that only differ in case, or in what was replaced, stay apart by the digest.
    return plain if plain == case else f"{plain}-{hashlib.sha256(case.encode()).hexdigest()[:10]}"


def _case(
    output: Path, name: str, quantity: str | None, row: Row | None, failures: list[Row], organs: list[Row]
) -> SiteCase:
    files = _files(output, name)
    volumes = {key.removesuffix(VOLUME): path for key, path in files.items() if key.endswith(VOLUME)}
    segmentation = volumes.pop(SEGMENTATION, None)
    pictures = {key.removesuffix(".png"): path for key, path in files.items() if key.endswith(".png")}
    values = {key: value for key, value in (row or {}).items() if key not in ("case", "status")}
    status = (row or {}).get("status") or ("failed" if row is None or failures else "done")
    maps = {key: volumes[key] for key in (quantity, *QUANTITIES, *volumes) if key in volumes}
    return SiteCase(name, page_name(name), status, values, failures, organs, maps, segmentation, pictures)


def _files(output: Path, name: str) -> dict[str, Path]:
    """The rest of each file's name after ``<case>_``, and the file."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        return {}
    folder, root = output / name, output.resolve()
    if not folder.is_dir():
        return {}
    return {
        path.name[len(name) + 1 :]: path
        for path in sorted(folder.iterdir())
        if path.name.startswith(f"{name}_") and path.is_file() and path.resolve().is_relative_to(root)
    }


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
