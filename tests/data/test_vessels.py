"""Folders as people keep them: which volume is a case, and which label is its own."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_slices import UID, write_series

from unoise_monai.data.cases import series_name
from unoise_monai.data.finding import find_images, list_cases
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import check_item
from unoise_monai.data.vessels import find_angiograms, list_vessel_cases

SIZE = (12, 10, 8)

Write = Callable[..., Path]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, missing_labels: str = "keep") -> dict[str, str | None]:
    """Image to label, relative to the folder's parent for what lies outside of it."""
    cases = list_vessel_cases(folder, missing_labels, check_headers=False)

    def short(path: str) -> str:
        inside = Path(path).is_relative_to(folder)
        return Path(path).relative_to(folder if inside else folder.parent).as_posix()

    return {short(case["image"]): short(case["label"]) if "label" in case else None for case in cases}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("scan_7.nii.gz", "scan_7_mask.nii.gz"),
        ("scan_7.nii.gz", "scan_7_label.nii"),
        ("scan_7.nrrd", "scan_7_seg.nrrd"),
        ("scan_7_TOF.nii.gz", "scan_7_TOF_vessels.nii.gz"),
        ("scan_7_TOF.nii.gz", "scan_7_vessel_mask.nii.gz"),
        ("IXI002-Guys-0828-MRA.nii.gz", "IXI002-Guys-0828_Label.nii.gz"),
        ("imagesTr/scan_7.nii.gz", "labelsTr/scan_7.nii.gz"),
        ("a/images/scan_7.nii.gz", "a/labels/scan_7_seg.nii.gz"),
        ("sub-01/ses-01/anat/sub-01_ses-01_angio.nii.gz", "sub-01/ses-01/anat/sub-01_ses-01_label-vessel_mask.nii.gz"),
        ("sub-01/anat/sub-01_acq-tof_angio.nii.gz", "derivatives/hand/sub-01/anat/sub-01_acq-tof_dseg.nii.gz"),
        ("sub-01/anat/sub-01_angio.nii.gz", "derivatives/hand/sub-01/anat/sub-01_label-vessel_desc-x_dseg.nii.gz"),
        ("sub-01/anat/sub-01_angio.nii.gz", "sub-01/anat/sub-01_angio_label-vessel.nii.gz"),
        ("Images/scan_7.nii.gz", "Labels/scan_7.nii.gz"),
    ],
)
def test_a_label_is_named_after_its_image(tmp_path: Path, image: str, label: str) -> None:
    touch(tmp_path, image, label, ".hidden/scan_9.nii.gz", f"{Path(image).parent}/._scan_7.nii.gz", "notes.txt")
    assert found(tmp_path) == {image: label}


@pytest.mark.parametrize(
    ("folder", "label"), [("series", "series_mask.nii.gz"), ("images/series", "labels/series.nii.gz")]
)
def test_the_label_of_a_series_is_named_after_its_folder(tmp_path: Path, folder: str, label: str) -> None:
    files = write_series(tmp_path / folder)
    touch(tmp_path, label)
    (item,) = list_vessel_cases(tmp_path, check_headers=False)
    assert item == {"case": series_name(UID), "image": [*map(str, files)], "label": str(tmp_path / label)}


@pytest.mark.parametrize(
    "other",
    [
        "sub-02/anat/sub-02_label-vessel_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_label-GM_desc-vessel_mask.nii.gz",
        "elsewhere/sub-01_label-vessel_mask.nii.gz",
        "derivatives/brain/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/filtered/sub-01/anat/sub-01_desc-preproc_angio.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
    ],
)
def test_what_is_neither_a_label_nor_an_angiogram(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_angio.nii.gz", other)
    assert found(tmp_path) == {"sub-01/anat/sub-01_angio.nii.gz": None}


def test_any_volume_where_none_is_named_an_angiogram(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.mha", "c/d.nrrd", "c/format.nii.gz")
    assert list(found(tmp_path)) == ["a.mha", "b.nii.gz", "c/d.nrrd", "c/format.nii.gz"]
    assert [item["case"] for item in list_vessel_cases(tmp_path, "keep", False)] == ["a", "b", "d", "format"]


@pytest.mark.parametrize("missing_labels", ["refuse", "drop", "keep", "make"])
def test_a_hand_made_label_goes_first(tmp_path: Path, missing_labels: str) -> None:
    touch(tmp_path, "scan.nii.gz", "scan_desc-semiauto_mask.nii.gz", "scan_seg.nii.gz")
    assert found(tmp_path, missing_labels) == {"scan.nii.gz": "scan_seg.nii.gz"}


def test_a_semi_automatic_label_counts_only_where_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "scan_7.nii.gz", "scan_7_desc-semiauto_mask.nii.gz")
    assert found(tmp_path, "keep") == {"scan_7.nii.gz": None}
    with pytest.raises(CaseError, match="must hold a hand-made label for every volume, got none for scan_7"):
        list_vessel_cases(tmp_path, check_headers=False)
    assert not caplog.text
    assert found(tmp_path, "make") == {"scan_7.nii.gz": "scan_7_desc-semiauto_mask.nii.gz"}
    assert "case scan_7: its label is semi-automatic" in caplog.text


def test_angiograms_to_explain_are_found_as_those_to_train_on_without_their_labels(tmp_path: Path) -> None:
    scan = "sub-01/anat/sub-01_angio.nii.gz"
    touch(tmp_path, scan, "sub-01/anat/sub-01_angio_desc-semiauto_mask.nii.gz", "sub-01/anat/sub-01_vessel_mask.nii.gz")
    expected = [{"case": "sub-01_angio", "image": str(tmp_path / scan)}]
    assert find_angiograms(tmp_path) == expected
    assert find_angiograms(tmp_path / scan) == expected
    with pytest.raises(CaseError, match="nowhere', which is not there"):
        find_angiograms(tmp_path / "nowhere")


def test_the_angiograms_of_a_decathlon_folder_are_its_unlabelled_ones(decathlon: Path) -> None:
    assert find_angiograms(decathlon) == find_images(decathlon)


def test_two_labels_of_an_image_and_two_images_of_a_label(tmp_path: Path) -> None:
    touch(tmp_path / "one", "scan.nii.gz", "scan_mask.nii.gz", "scan_seg.nii.gz")
    with pytest.raises(CaseError, match=r"case scan: an image must have one label, got .*scan_mask.* and .*scan_seg"):
        list_vessel_cases(tmp_path / "one")
    touch(tmp_path / "two", "sub-01_angio.nii.gz", "sub-01_TOF.nii.gz", "sub-01_mask.nii.gz")
    with pytest.raises(CaseError, match=r"sub-01_mask.nii.gz must belong to one image, got .*sub-01_TOF.* and .*angio"):
        list_vessel_cases(tmp_path / "two")


def test_two_volumes_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, "1/TOF.nii.gz", "2/TOF.nii.gz", "2/TOF_mask.nii.gz")
    one, two = list_vessel_cases(tmp_path, "keep", check_headers=False)
    assert (one["case"], two["case"]) == ("1_TOF", "2_TOF")
    assert "label" not in one
    assert two["label"] == str(tmp_path / "2/TOF_mask.nii.gz")


def test_a_label_that_leads_out_of_the_folder_fails_its_case(tmp_path: Path) -> None:
    touch(tmp_path, "in/scan.nii.gz", "far_mask.nii.gz")
    (tmp_path / "in/scan_mask.nii.gz").symlink_to("../far_mask.nii.gz")
    (item,) = list_vessel_cases(tmp_path / "in", "keep", check_headers=False)
    with pytest.raises(CaseError, match=r"case scan: file scan.nii.gz must have a map .*, which must lie within"):
        check_item(item)


def test_folders_without_volumes(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"must hold volumes .* got none"):
        list_vessel_cases(tmp_path)
    touch(tmp_path, ".scan.nii.gz", "labels/scan.nii.gz")
    with pytest.raises(CaseError, match=r"must hold volumes .* got none"):
        list_vessel_cases(tmp_path)
    with pytest.raises(CaseError, match=r"must be a folder, got .*nothing, which does not exist"):
        list_vessel_cases(tmp_path / "nothing")


def test_a_decathlon_folder(decathlon: Path) -> None:
    assert list_vessel_cases(decathlon) == list_cases(decathlon)


def test_what_becomes_of_missing_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "c.nii.gz")
    assert found(tmp_path, "drop") == {"a.nii.gz": "a_seg.nii.gz"}
    assert found(tmp_path, "keep") == {"a.nii.gz": "a_seg.nii.gz", "b.nii.gz": None, "c.nii.gz": None}
    with pytest.raises(CaseError, match="must hold a hand-made label for every volume, got none for b, c"):
        list_vessel_cases(tmp_path)
    with pytest.raises(ValueError, match=r"missing_labels must be one of 'refuse', .* got 'invent'"):
        list_vessel_cases(tmp_path, "invent")
    (tmp_path / "a_seg.nii.gz").unlink()
    with pytest.raises(CaseError, match="must hold volumes with labels, got 3 without"):
        list_vessel_cases(tmp_path, "drop")


def test_missing_labels_are_made_once(tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    voxels = np.random.default_rng(0).normal(200, 5, (24, 20, 16)).astype(np.float32)
    voxels[:, 9:12, 7:9] += 400
    write(tmp_path / "a_TOF.nii.gz", voxels)
    with caplog.at_level(logging.WARNING):
        cases = list_vessel_cases(tmp_path, "make")
    assert cases[0]["label"] == str(tmp_path / "a_TOF_desc-semiauto_mask.nii.gz")
    assert "case a_TOF: its label is semi-automatic" in caplog.text
    written = Path(cases[0]["label"]).stat()
    assert list_vessel_cases(tmp_path, "make") == cases
    assert Path(cases[0]["label"]).stat().st_mtime_ns == written.st_mtime_ns


def test_a_semi_automatic_label_of_another_grid_is_refused(tmp_path: Path, write: Write, affine: np.ndarray) -> None:
    write(tmp_path / "a.nii.gz", np.ones(SIZE, np.float32))
    moved = affine.copy()
    moved[:3, 3] += 5
    write(tmp_path / "a_desc-semiauto_mask.nii.gz", np.ones(SIZE, np.uint8), moved)
    with pytest.raises(CaseError, match=r"case a: label file .*semiauto.* must lie on the grid of the image"):
        list_vessel_cases(tmp_path, "make")


def test_headers_are_checked(tmp_path: Path, write: Write, affine: np.ndarray) -> None:
    write(tmp_path / "a.nii.gz", np.ones(SIZE, np.float32))
    label = write(tmp_path / "a_mask.nii.gz", np.ones(SIZE, np.uint8))
    assert len(list_vessel_cases(tmp_path)) == 1
    affine[:3, 3] += 1
    write(label, np.ones(SIZE, np.uint8), affine)
    with pytest.raises(
        CaseError, match=r"case a: label file .*a_mask.nii.gz must lie on the grid of the image, got corners"
    ):
        list_vessel_cases(tmp_path)
    assert len(list_vessel_cases(tmp_path, check_headers=False)) == 1
    write(tmp_path / "a.nii.gz", np.ones(SIZE[:2], np.float32))
    with pytest.raises(CaseError, match=r"case a: image file .* must be a 3-D volume, got shape \(12, 10\)"):
        list_vessel_cases(tmp_path)


def test_other_formats_are_checked_too(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=SIZE).astype(np.float32))
    image.SetSpacing([0.5, 0.6, 0.7])
    label = SimpleITK.GetImageFromArray(np.ones(SIZE, np.uint8))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    SimpleITK.WriteImage(label, str(tmp_path / "a_mask.nrrd"))
    with pytest.raises(CaseError, match=r"case a: label file .*a_mask.nrrd must lie on the grid of the image"):
        list_vessel_cases(tmp_path)
    label.CopyInformation(image)
    SimpleITK.WriteImage(label, str(tmp_path / "a_mask.nrrd"))
    assert len(list_vessel_cases(tmp_path)) == 1
    (tmp_path / "a.mha").write_bytes(b"nothing")
    with pytest.raises(CaseError, match=r"case a: image file .*a.mha is unreadable"):
        list_vessel_cases(tmp_path)


def test_a_series_is_a_case_and_finds_the_label_that_was_made_for_it(tmp_path: Path, series: Path) -> None:
    item = {"case": series_name(UID), "image": [str(path) for path in sorted(series.iterdir())]}
    assert list_vessel_cases(series, "keep") == [item]
    cases = list_vessel_cases(series, "make")
    assert cases == [{**item, "label": str(tmp_path / "series_desc-semiauto_mask.nii.gz")}]
    assert list_vessel_cases(series, "make") == list_vessel_cases(tmp_path, "make") == cases


def test_real_angiogram(shared: Callable[[str], Path]) -> None:
    folder = shared("tof_mra")
    (case,) = list_vessel_cases(folder, "keep")
    assert case["case"] == "chris_MRA"
