"""Task folders of the Medical Segmentation Decathlon: which cases they have."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

from monai.apps import DecathlonDataset
from monai.data import load_decathlon_datalist

from unoise_monai.data.validation import DICOM, EXTENSIONS, CaseError, case_name, check_grids

Case: TypeAlias = dict[str, str]
"""``case`` (its name), ``image`` and, where there is one, ``label`` (paths)."""


def list_cases(folder: str | Path, section: str = "training", check_headers: bool = True) -> list[Case]:
    """The cases of a Decathlon folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``), in its order.

    Args:
        folder: the task's folder.
        section: ``"training"`` (with labels) or ``"test"`` (without).
        check_headers: read every header now, so that a bad file is refused before work starts.

    Raises:
        CaseError: when dataset.json is missing or not JSON, lists nothing, or a case's file is missing or unreadable,
            is not three-dimensional, or its image and label lie on different grids; when two cases share a name.
    """
    index = Path(folder) / "dataset.json"
    if not _read_index(index).get(section):
        raise CaseError(f"{index} must list cases under '{section}', got none")
    items = load_decathlon_datalist(index, data_list_key=section)
    cases = [{"case": case_name(item["image"]), **{key: str(path) for key, path in item.items()}} for item in items]
    for name, times in Counter(case["case"] for case in cases).items():
        if times > 1:
            raise CaseError(f"{index} must list each case once under '{section}', got {name} {times} times")
    if check_headers:
        for case in cases:
            check_grids(case)
    return cases


def find_images(path: str | Path) -> list[Case]:
    """The images to explain: one file, every volume of a folder, or a Decathlon folder's unlabelled cases.

    A Decathlon folder without unlabelled cases gives its labelled ones. The DICOM files of a folder are one series,
    named after the folder. Hidden files, such as the ``._`` copies in the Decathlon's archives, are none.

    Raises:
        CaseError: when there is no such file or folder, no volume in it, or its dataset.json is not JSON.
    """
    path = Path(path)
    if path.is_file():
        return [{"case": case_name(path), "image": str(path)}]
    if not path.is_dir():
        raise CaseError(f"images must be a file or a folder, got {path}, which does not exist")
    if (path / "dataset.json").is_file():
        tests = _read_index(path / "dataset.json").get("test")
        return list_cases(path, "test" if tests else "training", check_headers=False)
    files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(EXTENSIONS)]
    volumes = [file for file in files if not file.name.startswith(".")]
    if not volumes:
        raise CaseError(f"folder {path} must hold volumes ({', '.join(EXTENSIONS)}), got none")
    # The slices of a series are one volume, their folder.
    volumes = list(dict.fromkeys(path if file.name.lower().endswith(DICOM) else file for file in volumes))
    cases = [{"case": case_name(file), "image": str(file)} for file in volumes]
    for name, times in Counter(case["case"] for case in cases).items():
        if times > 1:
            raise CaseError(f"folder {path} must hold one volume a case name, got {times} named {name}")
    return cases


def _read_index(index: Path) -> dict[str, Any]:
    if not index.is_file():
        raise CaseError(f"{index.parent} must be a Decathlon task folder with a dataset.json, got none")
    try:
        content = json.loads(index.read_text())
    except ValueError as error:
        raise CaseError(f"{index} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise CaseError(f"{index} must hold a JSON object, got {type(content).__name__}")
    return content


def download_task(name: str, root: str | Path) -> Path:
    """Fetch a task's archive (``Task04_Hippocampus``) to ``root``, and return its folder; nothing is fetched twice."""
    folder = Path(root) / name
    if not (folder / "dataset.json").is_file():
        Path(root).mkdir(parents=True, exist_ok=True)
        DecathlonDataset(root_dir=str(root), task=name, section="training", download=True, cache_rate=0.0)
    return folder
