"""Finds the cases of an input: a file, a folder, a pattern, a Decathlon folder, a table, DICOM series."""

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from monai.apps import DecathlonDataset

from unoise_monai.data.cases import (
    STATE,
    Case,
    Entry,
    Item,
    anonymised,
    distinct_names,
    look_at,
    safe_name,
    shown_path,
    stem,
    walk,
)
from unoise_monai.data.dicom import find_series
from unoise_monai.data.headers import EXTENSIONS, VOLUMES, CaseError, kind_of
from unoise_monai.data.reading import check_item

SECTIONS = ("training", "test")
INDEX = "dataset.json"


def find_items(path: str | os.PathLike[str]) -> list[Item]:
    """All cases of an input as MONAI's dictionary transforms take them, see `find_cases`."""
    return [case.item() for case in find_cases(path)]


def find_images(path: str | os.PathLike[str]) -> list[Item]:
    """`find_items`, but of a Decathlon folder the unlabelled cases alone, where there are any."""
    items = find_items(path)
    unlabelled = [item for item in items if "label" not in item] if (Path(path) / INDEX).is_file() else []
    return unlabelled or items


def find_labelled(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> list[Item]:
    """`find_items`, but the labelled cases alone where a Decathlon folder or ``labels`` has some.

    Args:
        path: see `find_cases`.
        labels: see `find_cases`.
    """
    root = Path(path)
    if labels is None and (root / INDEX).is_file() and not _nnunet(root.resolve(), [root / "imagesTr"]):
        return list_cases(path, check_headers=False)
    items = [case.item() for case in find_cases(path, labels)]
    return [item for item in items if "label" in item] or items


def list_cases(folder: str | os.PathLike[str], section: str = "training", check_headers: bool = True) -> list[Item]:
    """The cases in one section of a Decathlon folder (``dataset.json``, ``imagesTr``, ...), in its order.

    Args:
        section: ``"training"`` (with labels) or ``"test"`` (without).
        check_headers: refuse a bad header now, before work starts.

    Raises:
        CaseError: when dataset.json is missing or not JSON, lists nothing, or a case twice; see `check_item`.
    """
    root = Path(folder).resolve()
    cases = with_distinct_names(_decathlon(root, [section]))
    for files, times in Counter(case.files for case in cases if case.files).items():
        if times > 1:
            name = stem(files[0].name)
            raise CaseError(f"{root / INDEX} must list each case once under '{section}', got {name} {times} times")
    items = [case.item() for case in cases]
    for item in items if check_headers else ():
        check_item(item)
    return items


def download_task(name: str, root: str | Path) -> Path:
    """Fetch a task's archive (``Task04_Hippocampus``) to ``root``, and return its folder; nothing is fetched twice."""
    folder = Path(root) / name
    if not (folder / INDEX).is_file():
        Path(root).mkdir(parents=True, exist_ok=True)
        DecathlonDataset(root_dir=str(root), task=name, section="training", download=True, cache_rate=0.0)
    return folder


COLUMNS = ("case", "image")
CHANNEL_COLUMN = re.compile(r"image_(\d+)")
CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's names of files, one a channel, without their extension."""


def read_table(path: Path) -> list[Case]:
    """The cases of a CSV with columns ``case`` and ``image``, and ``label`` and ``organs`` where there are any.

    Paths are relative to the table, and may lead anywhere. An image is a volume, or a folder with one DICOM series; in
    the place of ``image``, ``image_0`` to ``image_n`` name one volume a channel.

    Raises:
        CaseError: when it is no CSV in UTF-8, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            several = sorted(filter(CHANNEL_COLUMN.fullmatch, columns), key=lambda name: int(name[6:]))
            if not {*COLUMNS} <= {*columns, *(["image"] if several else [])}:
                raise CaseError(f"table {path.name} must have columns {' and '.join(COLUMNS)}, got {columns}")
            reader.fieldnames = columns
            rows = [{key: (value or "").strip() for key, value in row.items() if key in columns} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise CaseError(f"table {path.name} must be CSV in UTF-8: {error}") from error
    home = path.absolute().parent
    images = [[row[name] for name in several] if several else [row["image"]] for row in rows]
    cases = [
        _with_channels(_case_of_row(home, {**row, "image": first}, number), [home / each for each in others])
        for number, (row, (first, *others)) in enumerate(zip(rows, images, strict=True), 1)
    ]
    # By whole paths: what is shown of them may be alike.
    return with_distinct_names(cases, [first for first, *_ in images])


def _with_channels(case: Case, files: Sequence[Path]) -> Case:
    """The case with the files of further channels; with a problem where one must not be read."""
    for file in files:
        entry = look_at(Path(file.anchor), file.relative_to(file.anchor)) or Entry(file, file, "must be a file")
        problem = entry.problem if entry.is_volume else "must be a volume"
        if problem and not case.problem:
            case = replace(case, problem=f"must have all its channels, of which {file.name} {problem}")
        case = replace(case, files=(*case.files, entry.path))
    return case


def _case_of_row(home: Path, row: dict[str, str], number: int) -> Case:
    image = PurePath(os.path.relpath(os.path.normpath(home / row["image"]), home))
    # The names of slices and their folders tend to be patients'.
    file = image.name if image.name.lower().endswith((*VOLUMES, ".img")) else ""
    name = safe_name(row["case"] or stem(file) or f"row {number}")
    case = Case(name, (), shown_path(image) if file else name)
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


def one_file(path: Path, case: Case) -> Case:
    """The case of a file that the user named, which may be a link to anywhere."""
    if path.suffix.lower() == ".img":
        path = path.with_suffix(".hdr")
    entry = look_at(Path(path.anchor), path.relative_to(path.anchor)) or Entry(path, path, "must be a file")
    if entry.is_slice:
        problem = "must hold a picture, got a DICOM file without one"
        found, *_ = find_series([entry]) or [replace(case, series=True, problem=problem)]
        return replace(found, name=case.name, shown=case.name)
    return replace(case, files=entry.files, problem=entry.problem)


def attach(cases: Sequence[Case], kind: str, path: str | os.PathLike[str]) -> list[Case]:
    """The cases with the maps of a folder or file; one without keeps what it has.

    Args:
        cases: with their safe names.
        kind: ``"label"`` or ``"organs"``, the field that is filled.
        path: a folder with ``<case>.nii.gz`` or another extension, or the file of the only case.

    Raises:
        CaseError: when ``path`` is not there, has a map for none of the cases or two for one, or is one file for many
            cases.
    """
    maps = Path(path).absolute()
    if maps.is_file():
        if len(cases) != 1:
            raise CaseError(f"{kind} must be a folder where there are many cases, got a file for {len(cases)}")
        return [with_map(cases[0], kind, Entry(maps, Path(maps.name)))]
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
    return [with_map(case, kind, found.get(case.name)) for case in cases]


def with_map(case: Case, kind: str, entry: Entry | None) -> Case:
    """The case with a map as its ``"label"`` or ``"organs"``; with a problem where the map must not be read."""
    if entry is None:
        return case
    if entry.problem:
        problem = case.problem or f"must have a map ({kind}), which {entry.problem}"
        case = replace(case, files=case.files if entry.files else (), problem=problem)
    maps: dict[str, Any] = {kind: entry.path} if entry.files else {}
    return replace(case, **maps)


def find_cases(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    organs: str | os.PathLike[str] | None = None,
    key: bytes | None = None,
) -> list[Case]:
    """All cases of an input, sorted by name; a bad one among them fails when it is loaded, not here.

    A case has the name of its file, without the extension. Where files in different folders share a name, the parts of
    their paths that differ come before it (``P1/ct.nii.gz`` is ``P1_ct``); the name of a DICOM series is a hash of its
    UID. Names are made safe, see `safe_name`.

    Args:
        path: a volume; a folder, searched with all below it; a pattern (``scans/*/ct.nii.gz``, ``**`` for any number of
            folders); a Decathlon folder, with its labelled and its unlabelled cases; a table, see `read_table`. Folders
            may hold DICOM series, one or mixed.
        labels: maps of the cases, see `attach`.
        organs: label maps of organs, likewise.
        key: makes the cases anonymous, see `anonymised`.

    Raises:
        CaseError: when there is no such input, no volume in it, or it is the output of a run; when a Decathlon folder's
            index is broken; see `read_table` and `attach`.
    """
    cases = with_distinct_names(_found(Path(path)))
    if not cases:
        raise CaseError(f"input must hold volumes ({', '.join(EXTENSIONS)}), got none in {os.fspath(path)!r}")
    cases = attach(cases, "label", labels) if labels is not None else cases
    cases = attach(cases, "organs", organs) if organs is not None else cases
    if key is not None:
        hidden = [anonymised(case.name, key) for case in cases]
        cases = [replace(case, name=name, shown=name) for case, name in zip(cases, hidden, strict=True)]
    return sorted(cases, key=lambda case: case.name)


def _found(path: Path) -> list[Case]:
    """Cases with safe names, of which some may be alike."""
    if kind_of(path) == "folder":
        root = path.resolve()
        if (root / STATE).exists():
            raise CaseError(f"input must not be the output of a run, got {os.fspath(path)!r}")
        if (root / INDEX).is_file():
            return _nnunet(root, sorted(root.glob("images*"))) or _decathlon(root)
        of_nnunet = root.name.startswith("images") and (root.parent / INDEX).is_file()
        nnunet = _nnunet(root.parent, [root]) if of_nnunet else []
        return nnunet or volumes_among(walk(root))
    if path.suffix.lower() == ".csv" and kind_of(path) == "file":
        return read_table(path)
    if os.path.lexists(path):
        return [one_file(path.absolute(), Case(safe_name(stem(path.name)), (), shown_path(Path(path.name))))]
    first = next((place for place, part in enumerate(path.parts) if set(part) & set("*?[")), None)
    if first is None:
        raise CaseError(f"input must be a file, folder, pattern or table, got {os.fspath(path)!r}, which is not there")
    return volumes_among(walk(Path(*path.parts[:first]).resolve(), path.parts[first:]))


def volumes_among(entries: Iterable[Entry]) -> list[Case]:
    """The cases among the files of a tree, with safe names, of which some may be alike."""
    entries = list(entries)
    volumes = [entry for entry in entries if entry.is_volume or entry.folder]
    paths = [(*entry.place.parent.parts, stem(entry.place.name)) for entry in volumes]
    alike: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in paths:
        alike[safe_name(parts[-1]).casefold()].append(parts)
    cases = []
    for entry, (*folders, name) in zip(volumes, paths, strict=True):
        same = alike[safe_name(name).casefold()]
        # Of files that share a name, the folders that they do not share are part of it.
        if len({len(each) for each in same}) == 1:
            folders = [part for column, part in enumerate(folders) if len({each[column] for each in same}) > 1]
        cases.append(_case("_".join((*folders, name)), entry))
    return cases + find_series([entry for entry in entries if entry.is_slice and not entry.folder])


def _case(name: str, entry: Entry) -> Case:
    return Case(safe_name(name), entry.files, shown_path(entry.place), problem=entry.problem)


def with_distinct_names(cases: Sequence[Case], sources: Sequence[str] | None = None) -> list[Case]:
    """Cases of which no two names are alike; `distinct_names` takes their sources, by default what is shown of them."""
    names = distinct_names([case.name for case in cases], sources or [case.shown for case in cases])
    return [
        replace(case, name=name, shown=name if case.series or case.shown == case.name else case.shown)
        for case, name in zip(cases, names, strict=True)
    ]


def _nnunet(root: Path, folders: Sequence[Path]) -> list[Case]:
    """The cases in folders of an nnU-Net data set; none where ``root`` holds none, such as a Decathlon task.

    ``imagesTr`` holds ``<case>_0000.nii.gz``, ``<case>_0001.nii.gz``, ... and ``labelsTr`` ``<case>.nii.gz``.
    """
    content = _index(root)
    if not content.get("channel_names") or isinstance(content.get("training"), list):
        return []
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    labels: dict[tuple[str, str], Path] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.name.lower().endswith(VOLUMES) and (match := CHANNEL_FILE.fullmatch(stem(file.name))):
                found[folder.name, match[1]].append(file)
        for file in sorted((root / folder.name.replace("images", "labels")).glob("*")):
            labels[folder.name, stem(file.name)] = file
    cases = []
    for (folder_name, name), files in found.items():
        first, *others = files
        named = Case(safe_name(name), (), shown_path(Path(folder_name, first.name)))
        case = _with_channels(one_file(first, named), others)
        if len(files) != len(content["channel_names"]):
            problem = f"must have {len(content['channel_names'])} channels, got {len(files)} files"
            case = replace(case, problem=case.problem or problem)
        cases.append(replace(case, label=labels.get((folder_name, name))))
    return cases


def _index(root: Path) -> dict[str, Any]:
    """What the index of a data set holds.

    Raises:
        CaseError: when there is none, or it is no JSON object.
    """
    index = root / INDEX
    if not index.is_file():
        raise CaseError(f"{root} must be a Decathlon task folder with a {INDEX}, got none")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaseError(f"{index} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise CaseError(f"{index} must hold a JSON object, got {type(content).__name__}")
    return content


def _decathlon(root: Path, sections: Sequence[str] = ()) -> list[Case]:
    """The cases of some sections of a Decathlon folder, of those that it has where none is given."""
    index, content = root / INDEX, _index(root)
    # Where it has none, the first one's absence is the error.
    sections = sections or [name for name in SECTIONS if content.get(name)] or SECTIONS[:1]
    cases = []
    for section in sections:
        if not content.get(section):
            raise CaseError(f"{index} must list cases under '{section}', got none")
        entries = content[section] if isinstance(content[section], list) else [None]
        cases += [_listed(root, section, entry) for entry in entries]
    return cases


def _listed(root: Path, section: str, entry: Any) -> Case:
    """The case of an entry of a Decathlon folder's index: a path, or paths under ``image`` and ``label``."""
    item = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(item, dict) or not all(isinstance(item.get(key, ""), str) for key in ("image", "label")):
        item = {}
    if "image" not in item:
        raise CaseError(f"{root / INDEX} must list files under '{section}', got entries of another form")
    image = _inside(root, item["image"])
    case = _case(stem(image.place.name), image)
    return with_map(case, "label", _inside(root, item["label"])) if "label" in item else case


def _inside(root: Path, path: str) -> Entry:
    place = Path(os.path.relpath(root / path, root))
    return look_at(root, place) or Entry(root / place, place, "must be a file, got a folder")
