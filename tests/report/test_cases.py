"""Which cases are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from unoise_monai.data import choose_cases, find_cohort, list_cases, split_cases, vessel_cohort


def test_labelled_cases_by_part_and_choice(cohort: Path, tmp_path: Path) -> None:
    split = split_cases(list_cases(cohort), tmp_path / "split.json", 0.34, 0.0)
    cases = find_cohort(cohort)
    names = [case["case"] for case in list_cases(cohort)]
    assert len(names) == len(cases) - 1
    for kind in (cases, vessel_cohort(cohort)):
        assert [case.name for case in choose_cases(kind)] == names
        assert all(case.label is not None for case in choose_cases(kind))
    validation = choose_cases(cases, tmp_path / "split.json", "validation")
    assert [case.name for case in validation] == [case["case"] for case in split["validation"]]
    assert [case.name for case in choose_cases(cases, choice=2)] == names[:2]
    assert [case.name for case in choose_cases(cases, choice=[names[2], names[0]])] == [names[2], names[0]]
    assert [case.name for case in choose_cases(cases, choice=names[1])] == [names[1]]
    assert [case["case"] for case in choose_cases(list_cases(cohort), choice=names[1])] == [names[1]]


def test_volumes_without_labels(cohort: Path) -> None:
    (case,) = choose_cases(find_cohort(cohort / "imagesTs"))
    assert case.label is None
    assert choose_cases(vessel_cohort(case.files[0])) == [case]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"part": "all"}, "part must be one of 'training', 'validation', 'test', got 'all'"),
        ({"part": "test"}, "part must be null where there is no split of labelled cases, got 'test'"),
        ({"choice": 0}, "cases must be at least 1, got 0"),
        ({"choice": ["nobody"]}, "cases must be some of .*got \\['nobody'\\]"),
        ({"choice": "nobody"}, "cases must be some of .*got \\['nobody'\\]"),
    ],
)
def test_refusals(cohort: Path, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        choose_cases(find_cohort(cohort), **options)
