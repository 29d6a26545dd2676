"""No patient serves twice, and a drawn split stays as it was drawn."""

import json
import logging
from pathlib import Path

import pytest

from unoise_monai.data.datasets import PARTS, Split, choose_cases, patient_of, split_cases
from unoise_monai.data.finding import find_items, list_cases
from unoise_monai.data.headers import CaseError


def cases_of(*numbers: int) -> list[dict[str, str]]:
    return [{"case": f"case_{n:03}", "image": f"/data/case_{n:03}.nii.gz"} for n in numbers]


def names(split: Split) -> dict[str, list[str]]:
    return {part: [case["case"] for case in cases] for part, cases in split.items()}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10, 33])
@pytest.mark.parametrize(("validation", "test"), [(0.2, 0.1), (0.9, 0.05), (0.0, 0.5), (0.05, 0.9), (0.4, 0.0), (0, 0)])
def test_each_case_lands_in_one_part(tmp_path: Path, count: int, validation: float, test: float) -> None:
    split = split_cases(cases_of(*range(count)), tmp_path / "split.json", validation, test)
    assert tuple(split) == PARTS
    everyone = [name for part in names(split).values() for name in part]
    assert sorted(everyone) == [case["case"] for case in cases_of(*range(count))]
    assert len(split["training"]) >= 1
    assert (len(split["validation"]) >= 1) == (validation > 0)


def test_shares_are_kept(tmp_path: Path) -> None:
    split = split_cases(cases_of(*range(50)), tmp_path / "split.json", 0.2, 0.1)
    assert {part: len(cases) for part, cases in split.items()} == {"training": 35, "validation": 10, "test": 5}


def test_one_case_serves_as_both_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = split_cases(cases_of(7), tmp_path / "split.json")
    assert names(split) == {"training": ["case_007"], "validation": ["case_007"], "test": []}
    assert "a single patient serves for training and for validation" in caplog.text


def test_the_seed_decides_not_the_order(tmp_path: Path) -> None:
    cases = cases_of(*range(30))
    first = split_cases(cases, tmp_path / "a.json", seed=3)
    assert split_cases(cases[::-1], tmp_path / "b.json", seed=3) == first
    assert split_cases(cases, tmp_path / "c.json", seed=4) != first


def test_a_split_is_saved_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "split.json"
    cases = cases_of(*range(20))
    first = split_cases(cases, path, seed=1)
    assert json.loads(path.read_text(encoding="utf-8")) == {"seed": 1, **names(first)}
    # The file decides, whatever is asked for now, and gives the paths of now.
    elsewhere = [{**case, "image": case["image"].replace("/data", "/mnt")} for case in cases]
    again = split_cases(elsewhere, path, validation_share=0.5, seed=2)
    assert names(again) == names(first)
    assert all(case["image"].startswith("/mnt") for part in PARTS for case in again[part])


def test_new_cases_join_the_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = split_cases(cases_of(*range(10)), tmp_path / "split.json")
    with caplog.at_level(logging.INFO):
        more = split_cases(cases_of(*range(12)), tmp_path / "split.json")
    assert names(more) == {**names(first), "test": [*names(first)["test"], "case_010", "case_011"]}
    assert "2 cases that the split split.json does not know join the test part" in caplog.messages


def test_lost_cases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split_cases(cases_of(*range(10)), path)
    with pytest.raises(CaseError, match=rf"split {path} must name cases of the data, got 1 .*\['case_004'\]"):
        split_cases(cases_of(*[n for n in range(10) if n != 4]), path)


@pytest.mark.parametrize("content", ["{", '{"training": []}', "[]"])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CaseError, match=rf"split {path} must be JSON with lists named training, validation, test"):
        split_cases(cases_of(1, 2), path)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((-0.1, 0.1), "validation_share must be at least 0 and below 1, got -0.1"),
        ((0.1, 1.0), "test_share must be at least 0 and below 1, got 1.0"),
        ((0.6, 0.4), r"validation_share \+ test_share must be below 1, got 0.6 \+ 0.4"),
    ],
)
def test_refuses_bad_arguments(tmp_path: Path, shares: tuple[float, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        split_cases(cases_of(1, 2), tmp_path / "split.json", *shares)
    with pytest.raises(ValueError, match="cases must hold at least one case, got none"):
        split_cases([], tmp_path / "split.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("sub-01_ses-1_angio", "sub-01"),
        ("sub-01_ses-2_angio", "sub-01"),
        ("sub-010_angio", "sub-010"),
        ("sub-01", "sub-01"),
        ("sub-01.old_angio", "sub-01.old_angio"),
        ("hippocampus_001", "hippocampus_001"),
        ("my_sub-01_angio", "my_sub-01_angio"),
    ],
)
def test_patient_of(name: str, patient: str) -> None:
    assert patient_of(name) == patient


@pytest.mark.parametrize("seed", range(4))
def test_sessions_of_a_patient_stay_together(tmp_path: Path, seed: int) -> None:
    scans = [f"sub-{number:02}_ses-{session}_angio" for number in range(9) for session in (1, 2, 3)]
    cases = [{"case": name, "image": f"/data/{name}.nii.gz"} for name in scans]
    split = names(split_cases(cases, tmp_path / "split.json", 0.3, 0.2, seed))
    patients = {part: {patient_of(name) for name in found} for part, found in split.items()}
    assert {part: len(found) for part, found in patients.items()} == {"training": 4, "validation": 3, "test": 2}
    assert len(set.union(*patients.values())) == 9
    assert {part: len(found) for part, found in split.items()} == {"training": 12, "validation": 9, "test": 6}


def test_some_cases_by_part_and_choice(decathlon: Path, tmp_path: Path) -> None:
    cases = list_cases(decathlon)
    split = split_cases(cases, tmp_path / "split.json", 0.34, 0.0)
    names = [case["case"] for case in cases]
    assert choose_cases(cases) == cases
    assert choose_cases(cases, tmp_path / "split.json", "validation") == split["validation"]
    assert choose_cases(cases, choice=2) == cases[:2]
    assert [case["case"] for case in choose_cases(cases, choice=[names[2], names[0]])] == [names[2], names[0]]
    assert choose_cases(cases, choice=names[1]) == [cases[1]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"part": "all"}, "part must be one of 'training', 'validation', 'test', got 'all'"),
        ({"part": "test"}, "part must be null where there is no split of labelled cases, got 'test'"),
        ({"part": "test", "split_file": "split.json"}, "part must be null where there is no split of labelled cases"),
        ({"choice": 0}, "choice must be at least 1, got 0"),
        ({"choice": ["nobody"]}, r"choice must name cases of the data, got \['nobody'\]"),
        ({"choice": "nobody"}, r"choice must name cases of the data, got \['nobody'\]"),
    ],
)
def test_choices_that_are_refused(decathlon: Path, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        choose_cases(find_items(decathlon / "imagesTs"), **options)
