"""Reads a CSV of cases: one a row, with its image and, where there are, its label and organ map."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path, PurePath

from unoise_monai.cohort.cases import CohortCase, stem
from unoise_monai.cohort.names import distinct_names, safe_name, shown_path
from unoise_monai.cohort.search import VOLUMES, Entry, look_at, walk
from unoise_monai.cohort.series import find_series
from unoise_monai.data.paths import kind_of
from unoise_monai.data.validation import CaseError

COLUMNS = ("case", "image")
NO_PICTURE = "must hold a picture, got a DICOM file without one"


def read_table(path: Path) -> list[CohortCase]:
    """The cases of a table with columns ``case`` and ``image``, and ``label`` and ``organs`` where there are any.

    Paths are relative to the table, and may lead anywhere. An image is a volume, or a folder with one DICOM series.

    Raises:
        CaseError: when it is no CSV in UTF-8, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            if not set(COLUMNS) <= set(columns):
                raise CaseError(f"table {path.name} must have columns {' and '.join(COLUMNS)}, got {columns}")
            reader.fieldnames = columns
            rows = [{key: (value or "").strip() for key, value in row.items() if key in columns} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise CaseError(f"table {path.name} must be CSV in UTF-8: {error}") from error
    cases = [_case(path.absolute().parent, row, number) for number, row in enumerate(rows, 1)]
    # What is shown of a path may be too little to tell rows apart, but for their order.
    names = distinct_names([case.name for case in cases], [row["image"] for row in rows])
    return [
        replace(case, name=name, shown=name if case.shown == case.name else case.shown)
        for case, name in zip(cases, names, strict=True)
    ]


def _case(home: Path, row: dict[str, str], number: int) -> CohortCase:
    image = PurePath(os.path.relpath(os.path.normpath(home / row["image"]), home))
    # Folders of slices, there or not, and slices tend to bear names.
    file = image.name if image.name.lower().endswith((*VOLUMES, ".img")) else ""
    name = safe_name(row["case"] or stem(file) or f"row {number}")
    case = CohortCase(name, (), shown_path(image) if file else name)
    if not row["image"]:
        return replace(case, shown=f"of row {number}", problem="must be named, got an empty column image")
    label, organs = (home / row[key] if row.get(key) else None for key in ("label", "organs"))
    path = home / row["image"]
    if kind_of(path) == "folder":
        found = find_series([entry for entry in walk(path.resolve()) if entry.is_slice])
        if len(found) != 1:
            return replace(case, problem=f"must be a folder with one DICOM series, got {len(found)}")
        name = name if row["case"] else found[0].name
        return replace(found[0], name=name, shown=name, label=label, organs=organs)
    return replace(one_file(path, case), label=label, organs=organs)


def one_file(path: Path, case: CohortCase) -> CohortCase:
    """The case of a file that the user named: wherever a link of that name leads, is meant."""
    if path.suffix.lower() == ".img":
        path = path.with_suffix(".hdr")
    entry = look_at(Path(path.anchor), path.relative_to(path.anchor)) or Entry(path, path, "must be a file")
    if entry.is_slice:
        found = find_series([entry]) or [replace(case, series=True, problem=NO_PICTURE)]
        return replace(found[0], name=case.name, shown=case.name)
    return replace(case, files=entry.files, problem=entry.problem)
