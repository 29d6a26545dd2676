"""A CSV names cases, their images and their maps."""

import os
from pathlib import Path

import pytest
from dicom_slices import UID, without_picture, write_series

from unoise_monai.data.cases import series_name
from unoise_monai.data.finding import read_table
from unoise_monai.data.headers import CaseError


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
    assert (one.name, one.shown, one.organs) == ("P1", "a.nii.gz", None)
    assert one.files[0].is_absolute()
    assert one.files[0].samefile(tmp_path / "in/a.nii.gz")
    assert one.label is not None
    assert one.label.samefile(tmp_path / "in/a_label.nii.gz")
    assert (two.name, two.label, two.organs) == ("b", None, tmp_path / "tables/o.nii.gz")


def test_paths_are_shown_below_the_table_only(tmp_path: Path) -> None:
    home = tmp_path / "tables"
    home.mkdir()
    images = ("in/a.nii", f"{home}/in/b.nii", f"{tmp_path}/Schmidt/c.nii", "../Schmidt/d.nii", "in/../../Schmidt/e.nii")
    cases = read_table(table(home, "case,image\n" + "".join(f"P,{image}\n" for image in images)))
    assert [case.shown for case in cases] == ["in/a.nii", "in/b.nii", "c.nii", "d.nii", "e.nii"]


def test_names_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = ["P1,../one/ct.nii", "P1,../two/ct.nii", ",../one/ct.nii"]
    names = {}
    for order in (rows, rows[::-1]):
        cases = read_table(table(tmp_path, "case,image\n" + "\n".join(order)))
        names[order[0]] = {str(case.files[0]): case.name for case in cases if not case.name.startswith("ct")}
        assert len({case.name for case in cases}) == 3
    assert names[rows[0]] == names[rows[-1]]


@pytest.mark.parametrize("kind", [b"1.2.840.10008.1.3.10", b"1.2.840.10008.5.1.4.1.1.88.33"])
def test_a_row_may_name_a_file_without_a_picture(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Schmidt.dcm").write_bytes(without_picture(kind))
    (case,) = read_table(table(tmp_path, "case,image\nP1,in/Schmidt.dcm\n"))
    assert (case.name, case.shown, case.files, case.series) == ("P1", "P1", (), True)
    assert case.problem == "must hold a picture, got a DICOM file without one"


def test_an_image_that_is_not_there_keeps_its_path(tmp_path: Path) -> None:
    """So that its results are not taken for another's; a folder's name is not shown, for it may be a patient's."""
    file, folder = read_table(table(tmp_path, "case,image,label\nP1,in/gone.nii,l.nii\nP2,in/Schmidt,\n"))
    assert (file.files, file.shown, file.label) == ((tmp_path / "in/gone.nii",), "in/gone.nii", tmp_path / "l.nii")
    assert (folder.files, folder.shown) == ((tmp_path / "in/Schmidt",), "P2")
    assert file.problem == folder.problem == "must be there, got nothing, or a link to nothing"


def test_a_row_may_be_bad(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    text = 'case,image\n../../etc/x,gone.nii\nP2,\nP3,empty\nP4,pipe.nii\nP5\n"a\nb",x.nii\n'
    cases = read_table(table(tmp_path, text))
    gone, x = tmp_path / "gone.nii", tmp_path / "x.nii"
    assert [case.files for case in cases] == [(gone,), (), (), (), (), (x,)]
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
    (case,) = read_table(table(tmp_path, "case,image\n,Schmidt\n"))
    assert case.name == case.shown == series_name(UID)
    write_series(tmp_path / "Schmidt", uid="1.2.3", names="b{}.dcm")
    (case,) = read_table(table(tmp_path, "case,image\nP1,Schmidt\n"))
    assert "must be a folder with one DICOM series, got 2" in case.problem
    assert case.shown == "P1"


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
