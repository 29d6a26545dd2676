"""Any Decathlon folder is read as it comes, and a broken one is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dicom_slices import UID, write_series

from unoise_monai.data import finding as module
from unoise_monai.data.cases import series_name
from unoise_monai.data.finding import download_task, find_images, find_items, list_cases
from unoise_monai.data.headers import CaseError


def rewrite(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def test_cases_come_in_the_order_of_the_index(decathlon: Path) -> None:
    cases = list_cases(decathlon)
    assert [case["case"] for case in cases] == ["hippocampus_003", "hippocampus_001", "hippocampus_002"]
    assert cases[0] == {
        "case": "hippocampus_003",
        "image": str(decathlon / "imagesTr/hippocampus_003.nii.gz"),
        "label": str(decathlon / "labelsTr/hippocampus_003.nii.gz"),
    }


def test_unlabelled_cases_are_plain_strings_in_the_index(decathlon: Path) -> None:
    cases = list_cases(decathlon, "test")
    assert [case["case"] for case in cases] == ["hippocampus_004", "hippocampus_005"]
    assert all(set(case) == {"case", "image"} and Path(case["image"]).is_file() for case in cases)


def test_sections_without_cases(decathlon: Path) -> None:
    rewrite(decathlon, test=[])
    for section in ("test", "validation"):
        with pytest.raises(CaseError, match=rf"dataset.json must list cases under '{section}', got none"):
            list_cases(decathlon, section)


def test_the_index_must_be_readable(decathlon: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=f"{tmp_path} must be a Decathlon task folder with a dataset.json, got none"):
        list_cases(tmp_path)
    for content, reason in (("{", "must be JSON: "), ("[1]", "must hold a JSON object, got list")):
        (decathlon / "dataset.json").write_text(content, encoding="utf-8")
        for read in (list_cases, find_images):
            with pytest.raises(CaseError, match=rf"dataset.json {reason}"):
                read(decathlon)


def test_each_case_is_listed_once(decathlon: Path) -> None:
    items = json.loads((decathlon / "dataset.json").read_text(encoding="utf-8"))["training"]
    rewrite(decathlon, training=[*items, items[1]])
    with pytest.raises(CaseError, match="must list each case once under 'training', got hippocampus_001 2 times"):
        list_cases(decathlon)


def test_a_bad_file_is_refused_before_work_starts(decathlon: Path) -> None:
    bad = decathlon / "imagesTr/hippocampus_002.nii.gz"
    bad.write_bytes(bad.read_bytes()[:30])
    with pytest.raises(CaseError, match=f"case hippocampus_002: image file {bad} is unreadable"):
        list_cases(decathlon)
    bad.unlink()
    with pytest.raises(CaseError, match=f"case hippocampus_002: file imagesTr/{bad.name} must be there"):
        list_cases(decathlon)
    assert len(list_cases(decathlon, check_headers=False)) == 3


def test_images_of_a_file_and_of_a_folder(decathlon: Path, tmp_path: Path) -> None:
    file = decathlon / "imagesTs/hippocampus_004.nii.gz"
    assert find_images(file) == [{"case": "hippocampus_004", "image": str(file)}]
    (file.parent / "README.txt").touch()
    # The ._ copies, which lie in the Decathlon's archives, are no volumes.
    assert [case["case"] for case in find_images(file.parent)] == ["hippocampus_004", "hippocampus_005"]
    with pytest.raises(CaseError, match=r"input must be a file, folder, .*, got .*nothing', which is not there"):
        find_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/._scan.nii.gz").touch()
    with pytest.raises(CaseError, match=r"input must hold volumes \(.nii.gz, .*\), got none in .*empty"):
        find_images(tmp_path / "empty")


def test_images_of_a_decathlon_folder(decathlon: Path) -> None:
    assert find_images(decathlon) == list_cases(decathlon, "test")
    rewrite(decathlon, test=[])
    assert find_images(decathlon) == sorted(list_cases(decathlon), key=lambda item: item["case"])


def test_items_are_what_the_finder_finds(tmp_path: Path, decathlon: Path) -> None:
    """Of a Decathlon folder all cases; a series by its slices."""
    everything = list_cases(decathlon) + list_cases(decathlon, "test")
    assert find_items(decathlon) == sorted(everything, key=lambda item: item["case"])
    paths = write_series(tmp_path / "mixed")
    (tmp_path / "mixed" / "other.nii.gz").touch()
    assert find_items(tmp_path / "mixed") == [
        {"case": "other", "image": str(tmp_path / "mixed/other.nii.gz")},
        {"case": series_name(UID), "image": [*map(str, paths)]},
    ]


def test_download_only_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fetch(**arguments: Any) -> None:
        calls.append(arguments)
        folder = Path(arguments["root_dir"]) / arguments["task"]
        folder.mkdir()
        (folder / "dataset.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(module, "DecathlonDataset", fetch)
    folder = tmp_path / "new" / "data" / "Task09_Spleen"
    for _ in range(2):
        assert download_task(folder.name, folder.parent) == folder
    # Without a cache rate of 0 the download would load every volume.
    expected = {"root_dir": str(folder.parent), "task": folder.name, "section": "training"}
    assert calls == [{**expected, "download": True, "cache_rate": 0.0}]


@pytest.mark.parametrize("name", ["Task04_Hippocampus", "Task07_Pancreas"])
def test_monai_can_download_the_tasks(name: str) -> None:
    assert name in module.DecathlonDataset.resource


def test_real_hippocampus(shared: Callable[[str], Path]) -> None:
    folder = shared("Task04_Hippocampus")
    assert len(list_cases(folder)) == 195
    assert [case["case"] for case in find_images(folder)][:2] == ["hippocampus_006", "hippocampus_014"]


def test_real_abdomen(shared: Callable[[str], Path]) -> None:
    folder = shared("abdomen_ct")
    cases = list_cases(folder)
    assert [case["case"] for case in cases] == ["abdomen_001"]
    assert find_images(folder) == cases
