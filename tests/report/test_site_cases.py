"""What a run left is found, and nothing beyond it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from outputs import FAILED, ODD, REASON, write_output, write_table

from unoise_monai.report.cases import page_name, read_cases, read_rows


def test_a_finished_run(cohort: Path, tmp_path: Path) -> None:
    scans = write_output(tmp_path, cohort)
    cases = read_cases(tmp_path)
    assert [case.name for case in cases] == [*scans, FAILED, ODD]
    first, name = cases[0], cases[0].name
    assert first.status == "done"
    assert "case" not in first.values
    assert float(first.values["dice"]) == 0.9
    assert list(first.maps) == ["importance", "saliency"]
    assert first.segmentation == tmp_path / name / f"{name}_seg.nii.gz"
    assert first.pictures == {key: tmp_path / name / f"{name}_{key}.png" for key in ("mip", "montage", "saliency_mip")}
    assert [dict(row) for row in first.organs] == [
        {"organ": "liver", "share": "0.25"},
        {"organ": "spleen", "share": "0.5"},
    ]
    failed = cases[-2]
    assert (failed.status, failed.maps, failed.segmentation) == ("failed", {}, None)
    assert [failure["reason"] for failure in failed.failures] == [REASON]


@pytest.mark.parametrize("pictures", [True, False])
def test_the_run_s_own_quantity_comes_first(pictures: bool, tmp_path: Path) -> None:
    write_table(tmp_path / "cohort.csv", [{"case": "a", "status": "done"}])
    (tmp_path / "a").mkdir()
    drawn = ("ablation_mip.png", "mip.png") if pictures else ()
    for end in ("ablation.nii.gz", "importance.nii.gz", "tolerance.nii.gz", "seg.nii.gz", "rise.nii.gz", *drawn):
        (tmp_path / "a" / f"a_{end}").touch()
    # Without a word of the run's, quantities come before methods.
    assert list(read_cases(tmp_path)[0].maps) == ["importance", "tolerance", "ablation", "rise"]
    (tmp_path / "run.json").write_text('{"settings": {"quantity": "tolerance"}}')
    assert list(read_cases(tmp_path)[0].maps) == ["tolerance", "importance", "ablation", "rise"]


def test_no_cell_holds_a_path(tmp_path: Path) -> None:
    write_table(tmp_path / "cohort.csv", [{"case": "a", "status": "done", "note": "from /data/DOE/ct.nii"}])
    write_table(tmp_path / "organs.csv", [{"case": "a", "organ": "/data/DOE/liver.nii"}])
    write_table(tmp_path / "failures.csv", [{"case": "a", "stage": "save", "reason": "full: '/home/jane/out/a.nii'"}])
    case = read_cases(tmp_path)[0]
    assert case.values["note"] == "from (path)"
    assert case.organs == [{"organ": "(path)"}]
    assert case.failures == [{"stage": "save", "reason": "full: (path)"}]


def test_cases_that_only_failed(tmp_path: Path) -> None:
    write_table(tmp_path / "cohort.csv", [{"case": "a", "status": "done"}])
    failure = {"stage": "read", "reason": "gone"}
    write_table(
        tmp_path / "failures.csv", [{"case": "b", **failure}, {"case": "a", **failure}, {"case": "b", **failure}]
    )
    cases = read_cases(tmp_path)
    assert [(case.name, case.status, len(case.failures)) for case in cases] == [("a", "done", 1), ("b", "failed", 2)]


@pytest.mark.parametrize("name", ["..", ".", "", "../secret", "secret/inner", "/secret", "a\0b", "..\\secret"])
def test_no_case_name_leads_out_of_the_output(name: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for folder in (tmp_path, tmp_path / "secret", output, output / "secret/inner"):
        folder.mkdir(parents=True, exist_ok=True)
        for start in ("", "..", "secret", "inner", "."):
            (folder / f"{start}_mip.png").touch()
    write_table(output / "cohort.csv", [{"case": "x", "status": "done"}])
    (output / "cohort.csv").write_text(f'case,status\n"{name}",done\n', encoding="utf-8")
    if "\0" in name and sys.version_info < (3, 11):
        with pytest.raises(ValueError, match=r"cohort\.csv must be CSV in UTF-8: line contains NUL"):
            read_cases(output)
    else:
        assert read_cases(output)[0].pictures == {}
    assert page_name(name).replace("-", "").replace("_", "").isalnum()


def test_a_table_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_bytes(b"case,status\n\xff,done\n")
    with pytest.raises(ValueError, match=r"cohort\.csv must be CSV in UTF-8"):
        read_cases(tmp_path)


def test_links_out_of_the_output_are_not_followed(tmp_path: Path) -> None:
    output = tmp_path / "output"
    write_table(output / "cohort.csv", [{"case": "a", "status": "done"}, {"case": "b", "status": "done"}])
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "b/b_mip.png", tmp_path / "other.png"):
        path.touch()
    (output / "a").mkdir()
    (output / "a/a_mip.png").symlink_to(tmp_path / "other.png")
    (output / "b").symlink_to(tmp_path / "b")
    assert [case.pictures for case in read_cases(output)] == [{}, {}]


def test_page_names_are_safe_and_apart() -> None:
    names = ["case_1", "Case_1", "case 1", "case/1", "cäse_1", "漢", "", "a" * 300, "a" * 301, "con.", "case_1-"]
    pages = [page_name(name) for name in names]
    assert pages[0] == "case_1"
    assert len({page.casefold() for page in pages}) == len(names)
    assert all(page.isascii() and len(page) < 100 and not set(page) & set("/\\. <>&%#?") for page in pages)


def test_tables_that_are_not_there_or_not_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"output must hold cohort.csv, got '.*'"):
        read_cases(tmp_path)
    assert read_rows(tmp_path / "none.csv") == []
    (tmp_path / "cohort.csv").write_text("name,status\na,done\n")
    with pytest.raises(ValueError, match=r"cohort.csv must have a column 'case', got \['name', 'status'\]"):
        read_cases(tmp_path)
    (tmp_path / "cohort.csv").write_text("case,status\na\nb,done,more,still\n")
    assert [(case.name, case.status) for case in read_cases(tmp_path)] == [("a", "done"), ("b", "done")]
