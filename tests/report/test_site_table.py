"""Columns know whether they hold numbers, cells sort by what they say, figures summarise what is there."""

from __future__ import annotations

import pytest

from unoise_monai.report.cases import (
    Column,
    SiteCase,
    cell,
    class_names,
    columns,
    label_of,
    number_columns,
    short,
    show,
    tiles,
)


def case(name: str, status: str = "done", **values: str) -> SiteCase:
    return SiteCase(name, name, status, values, [], [], {}, None, {})


CASES = [
    case("a", dice="0.5", site="x", organ_liver="0.2", seconds="2", seg_sha256="ab", empty=""),
    case("b", dice="nan", site="7", organ_liver="", seconds="4", seg_sha256="cd", empty=""),
    case("c", "failed"),
]


def test_columns_are_those_with_values() -> None:
    assert columns(CASES) == [
        Column("dice", "Dice", True, True),
        Column("site", "site", False, True),
        Column("organ_liver", "liver, share", True, False),
        Column("seconds", "seconds", True, True),
    ]
    assert columns([]) == []


def test_cells_show_little_and_sort_by_all() -> None:
    dice, site, organ, _ = columns(CASES)
    assert cell(CASES[0].values, dice) == ("0.500", "0.5")
    assert cell(CASES[1].values, dice) == ("-", "")
    assert cell(CASES[2].values, dice) == ("-", "")
    assert cell(CASES[1].values, organ) == ("-", "")
    assert cell(CASES[1].values, site) == ("7", "")
    text, value = cell({"dice": "0.123456789012"}, dice)
    assert (text, float(value)) == ("0.123", 0.123456789012)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.0, "0"), (3.0, "3"), (0.1234567, "0.123"), (12.345, "12.3"), (1234.56, "1235"), (1e-5, "1.00e-05")),
        *((123456789.5, "1.23e+08"), (float("nan"), "-"), (float("inf"), "-"), (-0.25, "-0.250")),
    ],
)
def test_short(number: float, text: str) -> None:
    assert short(number) == text
    assert show(repr(number)) == text


def test_texts_are_shown_as_they_are() -> None:
    assert show("liver") == "liver"
    assert number_columns([{"a": "1", "b": "x", "c": ""}, {"a": "", "b": "2", "c": ""}]) == {"a"}


@pytest.mark.parametrize(
    ("key", "label"),
    [
        *(("dice", "Dice"), ("dice_left_kidney", "Dice, left kidney"), ("volume_ml_1", "1, ml")),
        *(("importance_in_foreground", "importance inside"), ("organ_", "organ "), ("peak_rss", "peak rss")),
    ],
)
def test_labels(key: str, label: str) -> None:
    assert label_of(key) == label


def test_tiles_summarise_what_is_there() -> None:
    found = {tile.label: tile for tile in tiles(CASES)}
    assert list(found) == ["cases done", "failed", "Dice, mean", "seconds a case, mean"]
    assert (found["cases done"].value, found["cases done"].note) == ("2", "of 3")
    assert found["failed"].value == "1"
    assert found["Dice, mean"].value == "0.500"
    assert (found["seconds a case, mean"].value, found["seconds a case, mean"].note) == ("3", "median 3, 2 to 4")
    assert [tile.value for tile in tiles([])] == ["0", "0"]


def test_class_names_in_the_order_of_the_columns() -> None:
    assert class_names([case("a", volume_ml_left_lung="1", seconds="1", volume_ml_heart="2")]) == ["left lung", "heart"]
