"""What a finished run left in its output: a row, pictures and volumes for every case."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unoise_monai.handlers.quantity import QUANTITIES
from unoise_monai.report.site_run import run_quantity
from unoise_monai.report.site_texts import without_paths

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
