"""What a run left is found in its records, and nothing beyond it; columns, cells and numbers show what is there."""

import json
from pathlib import Path
from typing import Any

import pytest
from outputs import FAILED, HASH, ODD, REASON, write_output, write_record

from unoise_monai.report.cases import (
    Column,
    SiteCase,
    cell,
    class_names,
    columns,
    heading,
    number_columns,
    page_name,
    read_cases,
    run_facts,
    show,
    tiles,
    without_paths,
)
from unoise_monai.runs.records import Records
from unoise_monai.runs.save import write_tables


def test_a_finished_run(cohort: Path, tmp_path: Path) -> None:
    scans = write_output(tmp_path, cohort)
    cases = {case.name: case for case in read_cases(tmp_path)}
    assert list(cases) == sorted([*scans, FAILED, ODD])
    name = next(iter(scans))
    first, failed = cases[name], cases[FAILED]
    assert (first.status, first.stage, first.reason) == ("done", "", "")
    assert (first.values["dice"], first.values["organ_liver"], first.values["seconds"]) == (0.9, 0.25, 9.5)
    assert list(first.maps) == ["importance", "saliency"]
    assert first.segmentation == tmp_path / name / f"{name}_seg.nii.gz"
    assert first.pictures == {key: tmp_path / name / f"{name}_{key}.png" for key in ("mip", "montage", "saliency_mip")}
    assert [tuple(row.values()) for row in first.organs] == [("liver", 0.25), ("spleen", 0.5)]
    assert first.hashes == dict.fromkeys(("image", "importance", "saliency", "seg"), HASH)
    assert (failed.status, failed.stage, failed.reason) == ("failed", "read", REASON)
    assert (failed.maps, failed.segmentation, failed.hashes) == ({}, None, {})


def test_tables_are_never_read(cohort: Path, tmp_path: Path) -> None:
    write_output(tmp_path, cohort, pictures=False)
    expected = read_cases(tmp_path)
    write_tables(Records(tmp_path))
    for table in ("cohort", "failures", "organs"):
        (tmp_path / f"{table}.csv").write_bytes(b"case,status\n\xff,lost\n")
    assert read_cases(tmp_path) == expected


@pytest.mark.parametrize("quantity", ["importance", "tolerance", "sigma"])
def test_what_the_run_wrote_of_the_importance_comes_first(quantity: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for end in ("ablation.nii.gz", f"{quantity}.nii.gz", "seg.nii.gz", "rise.nii.gz", "ablation_mip.png", "mip.png"):
        (tmp_path / "a" / f"a_{end}").touch()
    write_record(tmp_path, "a")
    (tmp_path / "a/a_stranger.nii.gz").touch()
    (case,) = read_cases(tmp_path)
    assert list(case.maps) == [quantity, "ablation", "rise"]
    assert list(case.pictures) == ["ablation_mip", "mip"]


def test_no_text_holds_a_path(tmp_path: Path) -> None:
    organs = [{"organ": "/data/DOE/liver.nii", "importance_share": 0.5}]
    write_record(tmp_path, "a", note="from /data/DOE/ct.nii", organs=organs)
    write_record(tmp_path, "b", status="failed", stage="save", reason="full: '/home/jane/out/a.nii'")
    done, failed = read_cases(tmp_path)
    assert done.values["note"] == "from (path)"
    assert done.organs == [{"organ": "(path)", "importance_share": 0.5}]
    assert failed.reason == "full: (path)"
    assert "shown" not in done.values


@pytest.mark.parametrize(
    "record",
    [
        *("", "{", "[1, 2]", "[]", "3", "\udcff", '{"status": "done"}'),
        *(
            json.dumps({"case": "b", "status": "done", "source": {"sha256": HASH}, "files": {}, **{key: damage}})
            for key, damage in {
                "case": 3,
                "files": 3,
                "source": None,
                "numbers": [1],
                "organs": [{}],
                "voxels": 3,
            }.items()
        ),
        json.dumps({"case": "b", "status": "failed", "stage": "load"}),
    ],
)
def test_a_damaged_record_counts_as_none(record: str, tmp_path: Path) -> None:
    write_record(tmp_path, "a")
    Records(tmp_path).begin("c", "digest", [])
    (tmp_path / ".unoise/records/b.json").write_bytes(record.encode("utf-8", "surrogateescape"))
    assert [case.name for case in read_cases(tmp_path)] == ["a"]


def test_an_output_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("case,status\na,done\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"output must hold the records of a run, got '.*' without any"):
        read_cases(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "../secret", "secret/inner", "/secret", "a\0b", "..\\secret"])
def test_no_case_name_leads_out_of_the_output(name: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    files = {}
    for folder in (tmp_path, tmp_path / "secret", output, output / "secret/inner"):
        folder.mkdir(parents=True, exist_ok=True)
        for start in ("", "..", "secret", "inner", ".", name):
            files[f"{start}_mip.png"] = {"sha256": HASH}
            if not set(start) & set("/\0"):
                (folder / f"{start}_mip.png").touch()
    files |= {f"../{name}_mip.png": {"sha256": HASH}, f"{name}_/../../_mip.png": {"sha256": HASH}}
    record = {"case": name, "status": "done", "files": files, "source": {"sha256": HASH}}
    (output / ".unoise/records").mkdir(parents=True)
    (output / ".unoise/records/x.json").write_text(json.dumps(record), encoding="utf-8")
    # A record under another name than its case's counts as none.
    assert read_cases(output) == []
    assert page_name(name).replace("-", "").replace("_", "").isalnum()


def test_links_out_of_the_output_are_not_followed(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for path in (tmp_path / "b/b_mip.png", tmp_path / "other.png", output / "a/c"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (output / "a/a_mip.png").symlink_to(tmp_path / "other.png")
    (output / "b").symlink_to(tmp_path / "b")
    for name in ("a", "b"):
        write_record(output, name)
    assert [case.pictures for case in read_cases(output)] == [{}, {}]


def test_page_names_are_safe_and_apart() -> None:
    names = ["case_1", "Case_1", "case 1", "case/1", "cäse_1", "漢", "", "a" * 300, "a" * 301, "con.", "case_1-"]
    pages = [page_name(name) for name in names]
    assert pages[0] == "case_1"
    assert len({page.casefold() for page in pages}) == len(names)
    assert all(page.isascii() and len(page) < 100 and not set(page) & set("/\\. <>&%#?") for page in pages)


def case(name: str, status: str = "done", **values: float | str) -> SiteCase:
    return SiteCase(name, status, values)


CASES = [
    case("a", seconds=2, site="x", organ_liver=0.2, dice=0.5),
    case("b", seconds=4, site="7", dice=float("nan")),
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
    assert cell(CASES[1].values, site) == ("7", "")
    for row, column in ((1, dice), (2, dice), (1, organ)):
        assert cell(CASES[row].values, column) == ("-", "")
    text, value = cell({"dice": 0.123456789012}, dice)
    assert (text, float(value)) == ("0.123", 0.123456789012)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (3, "3"), (0.1234567, "0.123"), (12.345, "12.3"), (1234.56, "1235"), (1e-5, "1.00e-05")),
        *((123456789.5, "1.23e+08"), (float("nan"), "-"), (float("inf"), "-"), (-0.25, "-0.250"), ("liver", "liver")),
    ],
)
def test_numbers_are_shortened(value: float | str, text: str) -> None:
    assert show(value) == text


def test_a_column_with_a_text_is_none_of_numbers() -> None:
    assert number_columns([{"a": 1, "b": "x"}, {"b": 2.5}]) == {"a"}


@pytest.mark.parametrize(
    ("key", "label"),
    [
        *(("dice", "Dice"), ("dice_left_kidney", "Dice, left kidney"), ("volume_ml_1", "1, ml")),
        *(("importance_in_foreground", "importance inside"), ("organ_", "organ "), ("peak_rss", "peak rss")),
    ],
)
def test_headings(key: str, label: str) -> None:
    assert heading(key)[0] == label


def test_tiles_summarise_what_is_there() -> None:
    found = {tile.label: tile for tile in tiles(CASES)}
    assert list(found) == ["cases done", "failed", "Dice, mean", "seconds a case, mean"]
    assert (found["cases done"].value, found["cases done"].note) == ("2", "of 3")
    assert found["failed"].value == "1"
    assert found["Dice, mean"].value == "0.500"
    assert (found["seconds a case, mean"].value, found["seconds a case, mean"].note) == ("3", "median 3, 2 to 4")
    assert [tile.value for tile in tiles([])] == ["0", "0"]


def test_class_names_in_the_order_of_the_columns() -> None:
    assert class_names([case("a", volume_ml_left_lung=1, seconds=1, volume_ml_heart=2)]) == ["left lung", "heart"]


def test_versions_and_settings_of_a_run_but_no_paths_and_names(tmp_path: Path) -> None:
    run: dict[str, Any] = {
        "bundle": "/home/jane/hippocampus_mr_unoise",
        "weights_sha256": "ab12",
        "command": "unoise explain x /home/jane/DOE^JANE",
        "input": "DOE",
        "output": "out",
        "device": "cpu",
        "versions": {"torch": "2.8", "os": "/usr/lib/x"},
        "settings": {"methods": ["saliency", "rise"], "fast": False, "organs": None, "scans": "C:\\data"},
    }
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    assert run_facts(tmp_path) == [
        ("bundle", "hippocampus_mr_unoise"),
        ("weights sha256", "ab12"),
        ("device", "cpu"),
        ("versions, torch", "2.8"),
        ("settings, methods", "saliency, rise"),
        ("settings, fast", "False"),
    ]


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "\udcff"])
def test_a_run_without_a_word(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run_facts(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No space left on device: '/home/jane/my out/case_seg.nii.gz'", "No space left on device: (path)"),
        ("cannot read /data/DOE^JANE/ct.nii.gz, which is cut off", "cannot read (path), which is cut off"),
        ("at:/data/DOE^JANE/", "at:(path)"),
        ("from ~/scans/ct.nii and C:\\scans\\DOE JANE.nii", "from (path) and (path) JANE.nii"),
        ('"C:\\scans\\DOE JANE.nii" is gone', "(path) is gone"),
        ("\\\\server\\share\\ct.nii", "(path)"),
        ("'/ct.nii.gz' is missing", "(path) is missing"),
        *((text, text) for text in ("", "0.25", "64 x 64 x 30", "mm/voxel", "imagesTr/case_1.nii.gz", "1 / 2")),
        *((text, text) for text in ("the <b>end</b>: now", "a \\ b")),
    ],
)
def test_absolute_paths_go_and_all_else_stays(text: str, expected: str) -> None:
    assert without_paths(text) == expected
