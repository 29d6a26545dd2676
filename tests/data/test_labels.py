"""Each case gets its own map, from a folder or a file."""

from pathlib import Path

import pytest

from unoise_monai.data.cases import Case, safe_name
from unoise_monai.data.finding import attach
from unoise_monai.data.headers import CaseError

CASES = [Case(name, (Path(f"/in/{name}.nii"),), f"{name}.nii") for name in ("a", "b", safe_name("c\n"))]


def test_from_a_folder(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "c\n.nrrd", "other.nii", ".b.nii", "b.txt"):
        (tmp_path / name).touch()
    a, b, c = attach(CASES, "label", tmp_path)
    assert (a.label, b.label, c.label) == (tmp_path / "a.nii.gz", None, tmp_path / "c\n.nrrd")
    assert attach([a, b], "organs", tmp_path)[0] == Case(
        "a", a.files, a.shown, label=a.label, organs=tmp_path / "a.nii.gz"
    )


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "any.nii"
    path.touch()
    assert attach(CASES[:1], "organs", path)[0].organs == path
    with pytest.raises(CaseError, match="label must be a folder where there are many cases, got a file for 3"):
        attach(CASES, "label", path)


def test_a_label_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    had = Case("b", (), "b", label=Path("/b.nii"))
    assert attach([CASES[0], had], "label", tmp_path)[1] == had


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"label must be a folder or a file, got .*gone', which is not there"):
        attach(CASES, "label", tmp_path / "gone")
    (tmp_path / "x.nii").touch()
    with pytest.raises(CaseError, match=r"label must have a map of at least one case, such as 'a.nii.gz'"):
        attach(CASES, "label", tmp_path)
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(CaseError, match="label must have one map a case, got two of the name 'a'"):
        attach(CASES, "label", tmp_path)


def test_a_link_out_of_the_folder_fails_its_case(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("/etc/passwd")
    (case,) = attach(CASES[:1], "label", tmp_path)
    assert case.label is None
    assert case.files == ()
    assert case.problem.startswith("must have a map (label), which must lie within")


def test_a_link_to_nothing_fails_its_case_and_keeps_the_paths(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("nowhere.nii")
    (case,) = attach(CASES[:1], "label", tmp_path)
    assert (case.files, case.label) == (CASES[0].files, tmp_path / "a.nii")
    assert case.problem.startswith("must have a map (label), which must be there")
