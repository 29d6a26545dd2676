"""What a finished run left in its output, and the table of its cases."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from unoise_monai.handlers.savers import QUANTITIES
from unoise_monai.runs.records import Records
from unoise_monai.runs.save import VOLUME, case_values, file_hashes, ordered

logger = logging.getLogger(__name__)

START = r"(?:[A-Za-z]:[\\/]|\\\\|~?/)"
PATH = re.compile(
    # In quotes, as Python's errors name files, it may hold spaces.
    rf"""(?P<quote>['"]){START}[^'"\n]+(?P=quote)"""
    # Elsewhere a slash needs a second one: the first can be of a fraction, a unit or a tag.
    r"""|(?<![\w.])(?:[A-Za-z]:[\\/]|\\\\|~?/[^\s/'"]+/)[^\s'",;)]*"""
)
PRIVATE = ("command", "input", "output", "argv", "cases", "host", "hostname", "user")
"""Keys of ``run.json`` that hold paths, or names of patients or people."""


def without_paths(text: str) -> str:
    """A text in which ``(path)`` stands for absolute paths: they hold names of people, of folders and of machines."""
    return PATH.sub("(path)", text)


def run_facts(output: Path) -> list[tuple[str, str]]:
    """Names and values of ``run.json``, without paths and names; none where there is no such file, or it is broken."""
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(_facts(run, "")) if isinstance(run, dict) else []


def _facts(values: dict[str, Any], start: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{start}{key}".replace("_", " ")
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if key.lower() in PRIVATE:
            continue
        if isinstance(value, dict):
            yield from _facts(value, f"{name}, ")
        elif key == "bundle":
            yield name, PurePath(str(value)).name
        elif value not in (None, "") and not set(str(value)) & set("/\\"):
            yield name, str(value)


Value = float | str
Row = Mapping[str, Value]


@dataclass(frozen=True)
class SiteCase:
    """One case as the report shows it."""

    name: str
    status: str
    """``done`` or ``failed``."""
    values: Row
    """Its row of the table, see `case_values`."""
    stage: str = ""
    """At which it failed; empty where it did not."""
    reason: str = ""
    organs: Sequence[Row] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its files, see `file_hashes`."""
    maps: Mapping[str, Path] = field(default_factory=dict)
    """Name of a quantity or a method to its volume; what the run wrote of the importance first."""
    segmentation: Path | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """``mip``, ``montage``, ``<method>_mip``, ... to PNG files."""

    @property
    def page(self) -> str:
        """Name of its files in the report, without an ending: safe in any file system and any link."""
        return page_name(self.name)


def read_cases(output: Path) -> list[SiteCase]:
    """Every case that is done or has failed, by name, from the record that ``unoise explain`` wrote.

    Files are those that the record names, in ``<case>/<case>_*``; a case whose name is no plain folder name, or whose
    files lie outside of the output, is shown without them. A damaged record counts as none.

    Raises:
        FileNotFoundError: when ``output`` holds no records.
    """
    records = Records(output)
    if not records.folder.is_dir():
        raise FileNotFoundError(f"output must hold the records of a run, got {output.name!r} without any")
    cases: dict[str, SiteCase] = {}
    for record in records.all():
        try:
            if record["status"] in ("done", "failed"):
                cases.setdefault(record["case"], _case(output, record))
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.warning("a record is damaged, and counts as none")
    return list(cases.values())


def _case(output: Path, record: Mapping[str, Any]) -> SiteCase:
    name, failed = record["case"], record["status"] == "failed"
    files = _files(output, name, record.get("files", {}))
    volumes = {key.removesuffix(VOLUME): path for key, path in files.items() if key.endswith(VOLUME)}
    segmentation = volumes.pop("seg", None)
    return SiteCase(
        name=name,
        status=record["status"],
        values=_clean(case_values(record)),
        stage=without_paths(record["stage"]) if failed else "",
        reason=without_paths(record["reason"]) if failed else "",
        organs=[_clean(row) for row in record.get("organs", [])],
        hashes=file_hashes(record),
        maps={key: volumes[key] for key in sorted(volumes, key=lambda key: key not in QUANTITIES)},
        segmentation=segmentation,
        pictures={key.removesuffix(".png"): path for key, path in files.items() if key.endswith(".png")},
    )


def _clean(values: Mapping[str, Any]) -> dict[str, Value]:
    """Numbers, and texts without paths."""
    texts = {key: without_paths(value) for key, value in values.items() if isinstance(value, str) and value}
    return {key: texts.get(key, value) for key, value in values.items() if key in texts or is_number(value)}


def _files(output: Path, name: str, listed: Mapping[str, Any]) -> dict[str, Path]:
    """The rest of each file's name after ``<case>_``, and the file, where it is there."""
    root, start, found = output.resolve(), f"{name}_", {}
    for file in listed if name not in ("", ".", "..") else ():
        path = output / name / file
        plain = file.startswith(start) and not set(f"{name}{file}") & set("/\\\0")
        if plain and path.is_file() and path.resolve().is_relative_to(root):
            found[file.removeprefix(start)] = path
    return found


def page_name(case: str) -> str:
    """A file name for a case's page: the case's own where that is safe everywhere, else a like one, made unique."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", case.lower()).strip("_")[:60] or "case"
    # Case names that only differ in case, or in what was replaced, stay apart by the digest.
    return plain if plain == case else f"{plain}-{hashlib.sha256(case.encode()).hexdigest()[:10]}"


HEADINGS = {
    "dice": ("Dice", True),
    "dice_": ("Dice, {}", True),
    "volume_ml_": ("{}, ml", True),
    "organ_": ("{}, share", False),
    "importance_mean": ("importance, mean", False),
    "importance_p50": ("importance, median", False),
    "importance_p95": ("importance, 95th percentile", False),
    "importance_in_foreground": ("importance inside", True),
    "importance_in_background": ("importance outside", True),
    "voxels": ("voxels", False),
    "spacing_mm": ("voxel size, mm", False),
    "device": ("device", False),
    "peak_memory_gb": ("peak memory, GB", False),
}
"""A key, or its beginning where a class or an organ follows: its heading, and whether the table shows it unasked."""


class Column(NamedTuple):
    """One column of the table."""

    key: str
    label: str
    number: bool
    """Whether all its values are numbers, and so sort as such."""
    shown: bool
    """Unasked."""


class Cell(NamedTuple):
    """A cell's text, and the number that it sorts by (empty for none)."""

    text: str
    value: str


class Tile(NamedTuple):
    """One number above the table."""

    label: str
    value: str
    note: str


def columns(cases: Sequence[SiteCase]) -> list[Column]:
    """The columns that the cases have values for, in the order of ``cohort.csv``."""
    rows = [case.values for case in cases]
    numbers = number_columns(rows)
    return [Column(key, heading(key)[0], key in numbers, heading(key)[1]) for key in ordered(rows)]


def heading(key: str) -> tuple[str, bool]:
    """A key's heading in the table, and whether its column is shown unasked."""
    for start, (words, shown) in HEADINGS.items():
        rest = key.removeprefix(start)
        if (0 < len(rest) < len(key)) if "{}" in words else not rest:
            return words.format(rest.replace("_", " ")), shown
    return key.replace("_", " "), True


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_columns(rows: Sequence[Row]) -> set[str]:
    """The columns that hold numbers, and nothing else where they hold something."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key for key in keys if all(is_number(row[key]) for row in rows if key in row)}


def cell(row: Row, column: Column) -> Cell:
    """A row's cell of a column."""
    value = row.get(column.key, "")
    finite = column.number and not isinstance(value, str) and math.isfinite(value)
    return Cell(show(value) or "-", repr(float(value)) if finite else "")


def show(value: Value) -> str:
    """A text as it is; a number with three digits or so, whole ones whole, and a dash for one that is not finite."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "-"
    if value == round(value) and abs(value) < 1e6:
        return str(round(value))
    if abs(value) >= 1e6 or abs(value) < 5e-4:
        return f"{value:.2e}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3}f}"


def tiles(cases: Sequence[SiteCase]) -> list[Tile]:
    """The numbers above the table: how many cases, how good, how fast."""
    failed = sum(case.status != "done" for case in cases)
    found = [
        Tile("cases done", str(len(cases) - failed), f"of {len(cases)}"),
        Tile("failed", str(failed), "see the reasons below" if failed else "none"),
    ]
    for key in ("dice", "importance_in_foreground", "importance_in_background", "seconds"):
        given = (case.values.get(key, "") for case in cases)
        values = np.array([value for value in given if not isinstance(value, str) and math.isfinite(value)])
        if values.size:
            label = "seconds a case" if key == "seconds" else heading(key)[0]
            mean, median, low, high = (show(float(f(values))) for f in (np.mean, np.median, np.min, np.max))
            found.append(Tile(f"{label}, mean", mean, f"median {median}, {low} to {high}"))
    return found


def class_names(cases: Sequence[SiteCase]) -> list[str]:
    """The classes above 0, in their order, as the volumes of segmentations name them."""
    keys = dict.fromkeys(key for case in cases for key in case.values if key.startswith("volume_ml_"))
    return [key.removeprefix("volume_ml_").replace("_", " ") for key in keys]
