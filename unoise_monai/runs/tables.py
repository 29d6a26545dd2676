"""The tables of an output, made from its records: ``cohort.csv``, ``organs.csv`` and ``failures.csv``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unoise_monai.atomic import atomic_path
from unoise_monai.runs.records import Records, failures, tables_locked

FAILURE_COLUMNS = ("case", "file", "stage", "reason")
LAST_COLUMNS = ("voxels", "spacing_mm", "device", "note", "seconds", "peak_memory_gb")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell of text must not begin with: spreadsheets would run it."""


def write_tables(records: Records) -> None:
    """Write the tables of all that is known; of two runs that write at once, the last knows everything."""
    with tables_locked(records.output):
        # What another part has just begun is neither done nor failed.
        known = [record for record in records.all() if record["status"] != "begun"]
        rows = [_row(record) for record in known]
        _write(records.output / "cohort.csv", _columns(rows), rows)
        failed = [
            {"case": record["case"], "file": record["shown"], "stage": stage, "reason": reason}
            for record in known
            for stage, reason in failures(record)
        ]
        _write(records.output / "failures.csv", FAILURE_COLUMNS, failed)
        organs = [{"case": record["case"], **row} for record in known for row in record.get("organs", [])]
        if organs:
            _write(records.output / "organs.csv", list(organs[0]), organs)
        else:
            (records.output / "organs.csv").unlink(missing_ok=True)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": record["case"], "status": record["status"], **record.get("figures", {})}
    row |= {f"organ_{each['organ']}": each["importance_share"] for each in record.get("organs", [])}
    if record["status"] == "done":
        row |= {name: record[name] for name in LAST_COLUMNS}
        row |= {name: " x ".join(f"{side:g}" for side in record[name]) for name in ("voxels", "spacing_mm")}
        row["image_sha256"] = record["source"]["sha256"]
        prefix = f"{record['case']}_"
        for name, file in record["files"].items():
            if name.endswith(".nii.gz"):
                row[f"{name.removeprefix(prefix).removesuffix('.nii.gz')}_sha256"] = file["sha256"]
    return row


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns of all rows: of the organs, which not every case has, between the figures and the rest."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["case", "status"]
    last = [name for name in names if name in LAST_COLUMNS or name.endswith("_sha256")]
    organs = sorted(name for name in names if name.startswith("organ_"))
    first = [name for name in names if name not in last and name not in organs]
    # The mean over classes before the classes, though cases without a label come first.
    dice = sorted(
        (name for name in first if name == "dice" or name.startswith("dice_")), key=lambda name: name != "dice"
    )
    return ["case", "status", *dice, *(name for name in first[2:] if name not in dice), *organs, *last]


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
