"""Every kind of input gives its cases, all of them, under names of their own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_volumes import AFFINE, VOXELS
from dicom_slices import PATIENT, UID, slices, without_picture, write_series

from unoise_monai.data.cases import Case, anonymised, series_name
from unoise_monai.data.finding import find_cases
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, load_volume

LOAD = LoadCased(["image"], labels=2)


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), path)


def names(path: Path | str, **others: Path) -> list[str]:
    return [case.name for case in find_cases(path, **others)]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.hdr", "scan.NII", "a b\nü.nii", "脳-1.nii.gz"])
def test_a_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    (case,) = find_cases(tmp_path / name)
    assert case.files == (tmp_path / name,)
    assert "\n" not in case.name + case.shown
    load_volume(case.item()["image"])


def test_the_second_file_of_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "scan.img")
    (case,) = find_cases(tmp_path / "scan.img")
    assert (case.name, case.files) == ("scan", (tmp_path / "scan.hdr",))
    assert find_cases(tmp_path)[0].files == case.files


def test_a_folder(tmp_path: Path) -> None:
    """Volumes, series and bad files alike, from all its folders; what is none of these is not a case."""
    write(tmp_path / "b.nii.gz", tmp_path / "deep/er/a.nii")
    write_series(tmp_path / PATIENT)
    (tmp_path / "broken.nrrd").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    (tmp_path / "out.nii").symlink_to("/etc/passwd")
    cases = {case.name: case for case in find_cases(tmp_path)}
    assert list(cases) == sorted(["a", "b", "broken", "out", series_name(UID)])
    assert cases["a"].shown == "deep/er/a.nii"
    assert cases[series_name(UID)].series
    assert cases["out"].files == ()
    with pytest.raises(CaseError, match=r"case out: file out.nii must lie within the input's folder"):
        LOAD(cases["out"].item())
    with pytest.raises(CaseError, match=r"case broken: image file .*broken.nrrd is unreadable: it has no whole header"):
        LOAD(cases["broken"].item())


def test_names_in_folders(tmp_path: Path) -> None:
    """The parts that tell files apart, wherever the folder itself lies."""
    for place in ("one", "two"):
        root = tmp_path / place
        write(*(root / f"{patient}/day/{scan}.nii" for patient in ("P1", "P2") for scan in ("ct", "mr")))
        write(root / "P1/only.nii")
        assert names(root) == ["P1_ct", "P1_mr", "P2_ct", "P2_mr", "only"]
    write(tmp_path / "one/ct.nii")
    assert names(tmp_path / "one") == ["P1_day_ct", "P1_mr", "P2_day_ct", "P2_mr", "ct", "only"]


def test_no_two_names_are_alike(tmp_path: Path) -> None:
    write(*(tmp_path / each for each in ("a/b_c.nii", "a_b/c.nii", "x/c.nii", "x/b_c.nii", "x/C.nii.gz", "x/c.nii.gz")))
    found = names(tmp_path)
    assert len({name.casefold() for name in found}) == 6
    assert found == names(tmp_path)


def test_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(*(tmp_path / f"scans/{each}/ct.nii.gz" for each in ("P1", "P2")), tmp_path / "scans/P1/mr.nii.gz")
    write_series(tmp_path / "scans" / "P3")
    assert names(f"{tmp_path}/scans/*/ct.nii.gz") == ["P1_ct", "P2_ct"]
    assert names(tmp_path / "**" / "*r.nii.gz") == ["mr"]
    assert names(tmp_path / "scans" / "P[23]") == ["ct", series_name(UID)]
    monkeypatch.chdir(tmp_path)
    assert names("scans/*/ct.nii.gz") == names("*/*/ct.nii.gz") == ["P1_ct", "P2_ct"]
    write(tmp_path / "scan[1].nii")
    assert names("scan[1].nii") == ["scan[1]"]


def decathlon(root: Path, **changes: object) -> None:
    write(*(root / f"{folder}/case_{number}.nii.gz" for folder in ("imagesTr", "labelsTr") for number in (1, 2)))
    write(root / "imagesTs/case_3.nii.gz")
    index = {
        "training": [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in (1, 2)],
        "test": ["./imagesTs/case_3.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps({**index, **changes}), encoding="utf-8")


def test_a_decathlon_folder(tmp_path: Path) -> None:
    decathlon(tmp_path)
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["case_1", "case_2", "case_3"]
    labels = [tmp_path / f"labelsTr/case_{number}.nii.gz" for number in (1, 2)]
    assert [case.label for case in cases] == [*labels, None]
    assert [case.shown for case in cases][::2] == ["imagesTr/case_1.nii.gz", "imagesTs/case_3.nii.gz"]
    decathlon(tmp_path, training=[])
    assert names(tmp_path) == ["case_3"]


def test_a_bad_case_of_a_decathlon_folder(tmp_path: Path) -> None:
    root = tmp_path / "task"
    write(tmp_path / "far.nii.gz")
    items = [
        {"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/case_1.nii.gz"},
        {"image": "./imagesTr/case_1.nii.gz", "label": "../far.nii.gz"},
        {"image": "../far.nii.gz", "label": "./labelsTr/case_1.nii.gz"},
    ]
    decathlon(root, training=items)
    cases = {case.name: case for case in find_cases(root)}
    problems = {name: case.problem for name, case in cases.items()}
    assert problems["gone"].startswith("must be there")
    assert cases["gone"].files == (root / "imagesTr/gone.nii.gz",)
    assert problems["far"].startswith("must lie within")
    assert (cases["far"].files, cases["far"].shown) == ((), "far.nii.gz")
    assert problems["case_1"].startswith("must have a map (label), which must lie within")
    assert problems["case_3"] == ""


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"training": [1]}', '{"training": [{"label": "a"}]}', '{"test": {}}']
)
def test_a_broken_decathlon_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "dataset.json").write_text(index, encoding="utf-8")
    with pytest.raises(CaseError, match=r"dataset.json must"):
        find_cases(tmp_path)


def test_a_table(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", tmp_path / "b.nii")
    text = "case,image,label\n../../etc/x,a.nii,b.nii\nP1,b.nii,\np1,a.nii,\nP1,b.nii,\n"
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    cases = find_cases(tmp_path / "cases.csv")
    assert len({case.name.casefold() for case in cases}) == 4
    assert not any("/" in case.name for case in cases)
    assert {case.label for case in cases} == {None, tmp_path / "b.nii"}


def test_series_are_called_after_their_uid(tmp_path: Path) -> None:
    """Mixed in one folder, and without extensions."""
    folder = tmp_path / PATIENT
    write_series(folder, names="IM{}")
    write_series(folder, slices(3), uid="1.2.3.4", names="XX{}")
    cases = find_cases(folder)
    assert {case.name for case in cases} == {series_name(UID), series_name("1.2.3.4")}
    assert {len(case.files) for case in cases} == {6, 3}
    assert {case.name for case in find_cases(tmp_path)} == {case.name for case in cases}
    (alone,) = find_cases(folder / "IM0")
    with pytest.raises(CaseError, match="at least 2 slices, got 1"):
        LOAD(alone.item())


def test_labels_and_organs(tmp_path: Path) -> None:
    write(tmp_path / "in/P1/ct.nii", tmp_path / "in/P2/ct.nii", tmp_path / "maps/P1_ct.nii.gz", tmp_path / "one.nii")
    write_series(tmp_path / "in/P3")
    write(tmp_path / f"maps/{series_name(UID)}.nii")
    one, two, series = find_cases(tmp_path / "in", labels=tmp_path / "maps", organs=tmp_path / "maps")
    assert one.label == one.organs == tmp_path / "maps/P1_ct.nii.gz"
    assert two.label is None
    assert series.label == tmp_path / f"maps/{series_name(UID)}.nii"
    (case,) = find_cases(tmp_path / "in/P1", labels=tmp_path / "one.nii")
    assert case.label == tmp_path / "one.nii"


def test_anonymous_cases_keep_their_labels(tmp_path: Path) -> None:
    write(tmp_path / "in/Schmidt.nii", tmp_path / "in/Vogel.nii", tmp_path / "maps/Schmidt.nii")
    key = b"k" * 32
    cases = find_cases(tmp_path / "in", labels=tmp_path / "maps", key=key)
    assert {case.name for case in cases} == {anonymised("Schmidt", key), anonymised("Vogel", key)}
    assert all(case.shown == case.name for case in cases)
    assert cases == sorted(cases, key=lambda case: case.name)
    (labelled,) = (case for case in cases if case.label)
    assert labelled.name == anonymised("Schmidt", key)
    assert find_cases(tmp_path / "in", key=b"l" * 32)[0].name not in {case.name for case in cases}


def test_inputs_without_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cases.csv").write_text("case,image\n", encoding="utf-8")
    (tmp_path / "out" / ".unoise").mkdir(parents=True)
    for path in ("empty", "empty/*.nii", "cases.csv"):
        with pytest.raises(CaseError, match=r"input must hold volumes .* got none in "):
            find_cases(path)
    for path in ("gone", "gone.nii", "gone.csv", "a\0b", "x" * 300):
        with pytest.raises(CaseError, match="input must be a file, folder, pattern or table"):
            find_cases(path)
    with pytest.raises(CaseError, match="input must not be the output of a run, got 'out'"):
        find_cases("out")


def test_a_label_that_is_gone_leaves_its_path(tmp_path: Path) -> None:
    """Results of a case are no other's because its label is not there any more."""
    decathlon(tmp_path)
    (tmp_path / "labelsTr/case_1.nii.gz").unlink()
    case = find_cases(tmp_path)[0]
    assert case.files == (tmp_path / "imagesTr/case_1.nii.gz",)
    assert case.label == tmp_path / "labelsTr/case_1.nii.gz"
    assert case.problem.startswith("must have a map (label), which must be there")


@pytest.mark.parametrize("name", ["DICOMDIR", "Schmidt.dcm"])
def test_a_file_without_a_picture_is_a_case_that_fails(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(without_picture(b"1.2.840.10008.5.1.4.1.1.88.33"))
    (case,) = find_cases(tmp_path / name)
    with pytest.raises(CaseError, match=r"must hold a picture, got a DICOM file without one"):
        LOAD(case.item())
    with pytest.raises(CaseError, match=r"input must hold volumes .* got none in "):
        find_cases(tmp_path)


def test_odd_files_are_cases_that_fail(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "scan.xyz").write_text("x", encoding="utf-8")
    for name, says in (("pipe.nii", "must be a regular file"), ("scan.xyz", "must be a volume")):
        (case,) = find_cases(tmp_path / name)
        with pytest.raises(CaseError, match=says):
            LOAD(case.item())


def test_names_that_no_text_can_hold(tmp_path: Path) -> None:
    """A byte that is no UTF-8 in a file's name reaches neither names nor messages, and the file is read."""
    path = os.fsencode(tmp_path) + b"/sc\xffan.nii"
    write(tmp_path / "x.nii")
    (tmp_path / "x.nii").rename(os.fsdecode(path))
    (case,) = find_cases(tmp_path)
    assert (case.name + case.shown).encode().decode() == case.name + case.shown
    np.testing.assert_array_equal(LOAD(case.item())["image"][0].numpy(), VOXELS)


def test_real_data(shared: Callable[[str], Path]) -> None:
    cases = find_cases(shared("Task04_Hippocampus"))
    assert len(cases) == 200
    assert sum(case.label is not None for case in cases) == 195
    assert not any(case.problem for case in cases)
    assert all(isinstance(case, Case) and len(case.files) == 1 for case in cases)
