"""The tables of an output, made from its records for people: ``cohort.csv``, ``organs.csv`` and ``failures.csv``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unoise_monai.atomic import atomic_path
from unoise_monai.runs.records import Records, failures, tables_locked

LAST_COLUMNS = ("voxels", "spacing_mm", "device", "note", "seconds", "peak_memory_gb")
VOLUME = ".nii.gz"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell of text must not begin with: spreadsheets would run it."""


def write_tables(records: Records) -> None:
    """Write the tables of all that is known; of two runs that write at once, the last knows everything."""
    with tables_locked(records.output):
        # What another part has just begun is neither done nor failed.
        known = [record for record in records.all() if record["status"] != "begun"]
        rows = [{"case": record["case"], "status": record["status"], **case_values(record)} for record in known]
        hashes = [{f"{name}_sha256": value for name, value in file_hashes(record).items()} for record in known]
        columns = ["case", "status", *ordered(rows), *dict.fromkeys(name for row in hashes for name in row)]
        _write(records.output / "cohort.csv", columns, [row | found for row, found in zip(rows, hashes, strict=True)])
        failed = [
            {"case": record["case"], "file": record["shown"], "stage": stage, "reason": reason}
            for record in known
            for stage, reason in failures(record)
        ]
        _write(records.output / "failures.csv", ("case", "file", "stage", "reason"), failed)
        organs = [{"case": record["case"], **row} for record in known for row in record.get("organs", [])]
        if organs:
            _write(records.output / "organs.csv", list(organs[0]), organs)
        else:
            (records.output / "organs.csv").unlink(missing_ok=True)


def case_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """A case's measures, the shares of its organs, its grid and what it cost, by column, from its record."""
    values = dict(record.get("figures", {}))
    values |= {f"organ_{each['organ']}": each["importance_share"] for each in record.get("organs", [])}
    values |= {name: record[name] for name in LAST_COLUMNS if name in record}
    sides = {name: record[name] for name in ("voxels", "spacing_mm") if name in record}
    return values | {name: " x ".join(f"{side:g}" for side in value) for name, value in sides.items()}


def file_hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of what a case that is done was read from, ``image``, and of each of its volumes, by its name."""
    if record["status"] != "done":
        return {}
    names = {name: name.removeprefix(f"{record['case']}_").removesuffix(VOLUME) for name in record["files"]}
    volumes = {names[name]: file["sha256"] for name, file in record["files"].items() if name.endswith(VOLUME)}
    return {"image": record["source"]["sha256"], **volumes}


def ordered(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of `case_values` that the rows have: Dice (its mean before the classes), other figures, the organs,
    which not every case has, and the rest."""

    def place(name: str) -> tuple[int, str]:
        if name in LAST_COLUMNS:
            return 4, ""
        if name.startswith("organ_"):
            return 3, name
        return (0 if name == "dice" else 1 if name.startswith("dice_") else 2), ""

    names = dict.fromkeys(name for row in rows for name in row)
    return sorted((name for name in names if name not in ("case", "status")), key=place)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else value
