"""What the input of a cohort run holds: a file, a folder, a pattern, a Decathlon folder, a table, DICOM series."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from unoise_monai.cohort.cases import CohortCase, stem
from unoise_monai.cohort.csv_input import one_file, read_table
from unoise_monai.cohort.labels import attach
from unoise_monai.cohort.lock import STATE
from unoise_monai.cohort.names import anonymised, distinct_names, printable, safe_name, shown_path
from unoise_monai.cohort.search import Entry, look_at, walk
from unoise_monai.cohort.series import find_series
from unoise_monai.data.decathlon import list_cases
from unoise_monai.data.paths import kind_of
from unoise_monai.data.validation import EXTENSIONS, CaseError

WILDCARDS = "*?["


def find_cohort(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    organs: str | os.PathLike[str] | None = None,
    key: bytes | None = None,
) -> list[CohortCase]:
    """All cases of an input, sorted by name; a bad one among them fails when it is loaded, not here.

    A case is called as its file, without the extension. Where files in different folders share a name, the parts of
    their paths that tell them apart come before it (``P1/ct.nii.gz`` is ``P1_ct``); a DICOM series is called after a
    hash of its UID. Names are made safe, see `safe_name`.

    Args:
        path: a volume; a folder, searched with all below it; a pattern (``scans/*/ct.nii.gz``, ``**`` for any number of
            folders); a Decathlon folder, with its labelled and its unlabelled cases; a CSV with columns ``case`` and
            ``image``, and ``label`` and ``organs`` where there are any. Folders may hold DICOM series, one or mixed.
        labels: a folder with ``<case>.nii.gz`` (or another extension), or the file of the only case.
        organs: the same with label maps of organs.
        key: makes the cases anonymous, see `anonymised`.

    Raises:
        CaseError: when there is no such input, no volume in it, or it is the output of a run.
        CaseError: when a table lacks its columns or a Decathlon folder's index is broken.
        CaseError: when ``labels`` or ``organs`` don't exist or belong to no case, or one file is given for many cases.
    """
    cases = _named(_found(Path(path)))
    if not cases:
        raise CaseError(f"input must hold volumes ({', '.join(EXTENSIONS)}), got none in {os.fspath(path)!r}")
    cases = attach(cases, "label", labels) if labels is not None else cases
    cases = attach(cases, "organs", organs) if organs is not None else cases
    if key is not None:
        hidden = [anonymised(case.name, key) for case in cases]
        cases = [replace(case, name=name, shown=name) for case, name in zip(cases, hidden, strict=True)]
    return sorted(cases, key=lambda case: case.name)


def _found(path: Path) -> list[CohortCase]:
    """Cases with safe names, of which some may be alike."""
    if kind_of(path) == "folder":
        root = path.resolve()
        if (root / STATE).exists():
            raise CaseError(f"input must not be the output of a run, got {os.fspath(path)!r}")
        return _decathlon(root) if (root / "dataset.json").is_file() else _volumes(walk(root))
    if path.suffix.lower() == ".csv" and kind_of(path) == "file":
        return read_table(path)
    if os.path.lexists(path):
        return [one_file(path.absolute(), CohortCase(safe_name(stem(path.name)), (), printable(path.name)))]
    first = next((place for place, part in enumerate(path.parts) if any(each in part for each in WILDCARDS)), None)
    if first is None:
        raise CaseError(f"input must be a file, folder, pattern or table, got {os.fspath(path)!r}, which is not there")
    return _volumes(walk(Path(*path.parts[:first]).resolve(), path.parts[first:]))


def _volumes(entries: Sequence[Entry]) -> list[CohortCase]:
    volumes = [entry for entry in entries if entry.is_volume or entry.folder]
    names = _distinguishing([entry.place for entry in volumes])
    cases = [_case(name, entry) for name, entry in zip(names, volumes, strict=True)]
    return cases + find_series([entry for entry in entries if entry.is_slice and not entry.folder])


def _case(name: str, entry: Entry) -> CohortCase:
    return CohortCase(safe_name(name), entry.files, shown_path(entry.place), problem=entry.problem)


def _distinguishing(places: Sequence[PurePath]) -> list[str]:
    """Names of files: their own, and, where others share it, those parts of their paths that they don't share."""
    alike: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    paths = [(*place.parent.parts, stem(place.name)) for place in places]
    for parts in paths:
        alike[safe_name(parts[-1]).casefold()].append(parts)
    names = []
    for parts in paths:
        same = alike[safe_name(parts[-1]).casefold()]
        if len({len(each) for each in same}) == 1:
            told = [part for column, part in enumerate(parts[:-1]) if len({each[column] for each in same}) > 1]
        else:
            told = list(parts[:-1])
        names.append("_".join((*told, parts[-1])) if len(same) > 1 else parts[-1])
    return names


def _named(cases: Sequence[CohortCase]) -> list[CohortCase]:
    """Cases of which no two names are alike."""
    names = distinct_names([case.name for case in cases], [case.shown for case in cases])
    return [
        replace(case, name=name, shown=name if case.series or case.shown == case.name else case.shown)
        for case, name in zip(cases, names, strict=True)
    ]


def _decathlon(root: Path) -> list[CohortCase]:
    try:
        index = json.loads((root / "dataset.json").read_text())
    except ValueError:
        index = None
    sections = [name for name in ("training", "test") if isinstance(index, dict) and index.get(name)]
    found = []
    try:
        # Where there is no section, the first one's absence is the error.
        for section in sections or ["training"]:
            found += list_cases(root, section, check_headers=False)
    except (KeyError, TypeError, AttributeError) as error:
        raise CaseError(f"dataset.json must list files under {sections}, got entries of another form") from error
    cases = []
    for item in found:
        image = _inside(root, item["image"])
        label = _inside(root, item["label"]) if "label" in item else None
        case = _case(item["case"], image)
        if label is not None and label.problem:
            files = case.files if label.files else ()
            case = replace(case, files=files, problem=case.problem or f"must have a label, which {label.problem}")
        cases.append(case if label is None else replace(case, label=next(iter(label.files), None)))
    return cases


def _inside(root: Path, path: str) -> Entry:
    place = Path(os.path.relpath(path, root))
    return look_at(root, place) or Entry(root / place, place, "must be a file, got a folder")
