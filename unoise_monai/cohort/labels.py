"""Finds the label map that belongs to each case."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unoise_monai.cohort.cases import CohortCase, stem
from unoise_monai.cohort.names import safe_name
from unoise_monai.cohort.search import VOLUMES, Entry, walk
from unoise_monai.data.validation import CaseError


def attach(cases: Sequence[CohortCase], kind: str, path: str | os.PathLike[str]) -> list[CohortCase]:
    """The cases with their label maps; one without keeps what it has.

    Args:
        cases: with their safe names.
        kind: ``"label"`` or ``"organs"``, the field that is filled.
        path: a folder with ``<case>.nii.gz`` or another extension, or the file of the only case.

    Raises:
        CaseError: when there is no such folder or file, it has a map for none of the cases or two for one, or one file
            is given for many cases.
    """
    maps = Path(path).absolute()
    if maps.is_file():
        if len(cases) != 1:
            raise CaseError(f"{kind} must be a folder where there are many cases, got a file for {len(cases)}")
        return [_with(cases[0], kind, Entry(maps, Path(maps.name)))]
    if not maps.is_dir():
        raise CaseError(f"{kind} must be a folder or a file, got {os.fspath(path)!r}, which is not there")
    found: dict[str, Entry] = {}
    for entry in walk(maps.resolve()):
        if len(entry.place.parts) > 1 or not entry.is_volume:
            continue
        for name in {stem(entry.place.name), safe_name(stem(entry.place.name))}:
            if name in found:
                raise CaseError(f"{kind} must have one map a case, got two of the name {name!r}")
            found[name] = entry
    if not found.keys() & {case.name for case in cases}:
        example = f"{cases[0].name}{VOLUMES[0]}"
        raise CaseError(f"{kind} must have a map of at least one case, such as {example!r}, got none that fits")
    return [_with(case, kind, found.get(case.name)) for case in cases]


def _with(case: CohortCase, kind: str, entry: Entry | None) -> CohortCase:
    if entry is None:
        return case
    if entry.problem:
        problem = case.problem or f"must have a map ({kind}), which {entry.problem}"
        case = replace(case, files=case.files if entry.files else (), problem=problem)
    if not entry.files:
        return case
    return replace(case, label=entry.path) if kind == "label" else replace(case, organs=entry.path)
