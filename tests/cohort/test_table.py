"""A CSV names cases, their images and their maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dicom_slices import write_series

from unoise_monai.cohort.table import read_table
from unoise_monai.data.validation import CaseError


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "cases.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_rows(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "far/b.nii", "a_label.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "tables").mkdir()
    text = "Case, image ,label,organs,age\nP1,../in/a.nii.gz,../in/a_label.nii.gz,,50\n,../in/far/b.nii,,o.nii.gz,\n"
    one, two = read_table(table(tmp_path / "tables", text, "utf-8-sig"))
    assert (one.name, one.shown, one.organs) == ("P1", "../in/a.nii.gz", None)
    assert one.files[0].is_absolute()
    assert one.files[0].samefile(tmp_path / "in/a.nii.gz")
    assert one.label is not None
    assert one.label.samefile(tmp_path / "in/a_label.nii.gz")
    assert (two.name, two.label, two.organs) == ("b", None, tmp_path / "tables/o.nii.gz")


def test_absolute_paths_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (case,) = read_table(table(tmp_path, f"case,image\nP1,{tmp_path}/a.nii\n"))
    assert case.files == (tmp_path / "a.nii",)
    assert case.shown == "a.nii"


def test_a_row_may_be_bad(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    text = 'case,image\n../../etc/x,gone.nii\nP2,\nP3,empty\nP4,pipe.nii\nP5\n"a\nb",x.nii\n'
    cases = read_table(table(tmp_path, text))
    assert [case.files for case in cases] == [()] * 6
    assert all(case.problem.startswith("must ") for case in cases)
    assert cases[0].name.startswith("_.._etc_x-")
    assert cases[1].shown == "of row 2"
    assert "one DICOM series, got 0" in cases[2].problem
    assert cases[5].name.startswith("a_b-")


def test_a_folder_of_slices(tmp_path: Path) -> None:
    """It is called as the table says, and its folder, which may be the patient's name, is not shown."""
    paths = write_series(tmp_path / "Schmidt")
    (case,) = read_table(table(tmp_path, "case,image\nP1,Schmidt\n"))
    assert (case.name, case.shown, case.series) == ("P1", "P1", True)
    assert case.files == tuple(paths)
    write_series(tmp_path / "Schmidt", uid="1.2.3", names="b{}.dcm")
    (case,) = read_table(table(tmp_path, "case,image\nP1,Schmidt\n"))
    assert "must be a folder with one DICOM series, got 2" in case.problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"must have columns case and image, got \[\]"),
        ("case,scan\na,b\n", r"must have columns case and image, got \['case', 'scan'\]"),
        ("case;image\na;b\n", r"must have columns case and image, got \['case;image'\]"),
    ],
)
def test_columns(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CaseError, match=rf"table cases.csv {says}"):
        read_table(table(tmp_path, text))


def test_no_csv(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"table cases.csv must be CSV in UTF-8"):
        read_table(table(tmp_path, "case,image\nMüller,a.nii\n", "latin-1"))
    with pytest.raises(CaseError, match=r"table cases.csv must be CSV in UTF-8"):
        read_table(table(tmp_path, f"case,image\n{'x' * 200000},a.nii\n"))
