"""A DICOM series becomes one volume in its place, with all slices or not at all, and tells nothing of the patient."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_slices import DATE, PATIENT, PATIENT_ID, SPACING_MM, TURN, UID, slices, write_series

from unoise_monai.data.cases import Case, scrub
from unoise_monai.data.dicom import volume_file
from unoise_monai.data.finding import find_cases
from unoise_monai.data.headers import CaseError


def only(folder: Path) -> Case:
    (case,) = find_cases(folder)
    return case


def refusal(folder: Path, output: Path) -> str:
    with pytest.raises(CaseError) as caught:
        volume_file(only(folder), output)
    return str(caught.value)


def as_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and RAS affine of what ITK makes of the series of a folder."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps = np.diag([-1.0, -1.0, 1.0])
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[:3, :3] = lps @ np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = lps @ image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, affine


def test_as_itk_reads_it(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    path = volume_file(only(tmp_path / "in"), tmp_path)
    image = nib.load(path)
    voxels, affine = as_itk(tmp_path / "in")
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    np.testing.assert_array_equal(np.asarray(image.dataobj), slices().T)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), (*SPACING_MM, 2.0), atol=1e-5)
    assert path.suffix == ".nii"


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    """Neither names nor numbers tell where a slice is, and a series may run downwards."""
    down = (-2.0 * TURN[:, 2]).tolist()
    write_series(tmp_path / "in", slices()[::-1], down)
    image = nib.load(volume_file(only(tmp_path / "in"), tmp_path))
    origin = np.array([10.0, -20.0, 30.0]) + 5 * np.array(down)
    np.testing.assert_array_equal(np.asarray(image.dataobj), slices().T)
    np.testing.assert_allclose(image.affine[:3, 3], np.diag([-1, -1, 1]) @ origin, atol=1e-5)
    np.testing.assert_allclose(image.affine, as_itk(tmp_path / "in")[1], atol=1e-5)


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    """The type of the first slice, whole numbers, must not round the others."""
    paths = write_series(tmp_path / "in")
    halves = slices().astype(np.float32) + 0.5
    stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
    scaled = write_series(tmp_path / "half", halves, tags={"0028|1052": "0", "0028|1053": "0.5", **stored})
    paths[-1].write_bytes(scaled[-1].read_bytes())
    voxels = np.asarray(nib.load(volume_file(only(tmp_path / "in"), tmp_path)).dataobj)
    np.testing.assert_allclose(voxels[..., -1], halves.T[..., -1], atol=1e-4)
    np.testing.assert_array_equal(voxels[..., :-1], slices().T[..., :-1])


@pytest.mark.parametrize(
    ("heights", "says"),
    [
        ((0, 2, 4, 8, 10, 12), r"all its slices, 2 mm apart, got 4 mm between slices 3 and 4 of 6"),
        ((0, 2, 4, 6.1, 8, 10), r"all its slices, 2 mm apart, got 2.1 mm between slices 3 and 4 of 6"),
        ((0, 2, 2, 4, 6, 8), r"one slice a place, got slices 2 and 3 of 6 at the same one"),
        ((0, 0, 0, 0, 0, 0), r"one slice a place"),
    ],
)
def test_missing_and_doubled_slices(tmp_path: Path, heights: tuple[float, ...], says: str) -> None:
    write_series(tmp_path / "in", heights_mm=heights)
    assert says in refusal(tmp_path / "in", tmp_path)
    assert not list(tmp_path.glob("*.nii"))


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    write_series(tmp_path / "in", heights_mm=(0, 0.66, 1.33, 2.0, 2.67, 3.33))
    volume_file(only(tmp_path / "in"), tmp_path)


@pytest.mark.parametrize(
    ("voxels", "tags", "says"),
    [
        (slices(), {"0020|0037": "1\\0\\0\\0\\1\\0"}, "slices of one orientation"),
        (slices(), {"0020|0032": "1000\\-20\\30"}, "must have"),
        (slices()[:, :8], {}, "slices of one size, got (12, 10) and (12, 8)"),
    ],
)
def test_slices_of_other_volumes(tmp_path: Path, voxels: np.ndarray, tags: dict[str, str], says: str) -> None:
    paths = write_series(tmp_path / "in")
    paths[2].write_bytes(write_series(tmp_path / "other", voxels, tags=tags)[2].read_bytes())
    assert says in refusal(tmp_path / "in", tmp_path)


def test_one_slice_frames_and_colours(tmp_path: Path) -> None:
    write_series(tmp_path / "one", slices(1))
    assert "at least 2 slices, got 1" in refusal(tmp_path / "one", tmp_path)
    colours = np.random.default_rng(0).integers(0, 255, (4, 10, 12, 3)).astype(np.uint8)
    write_series(tmp_path / "rgb", colours, tags={"0008|0060": "OT"})
    assert "one grey value (MONOCHROME2), got RGB" in refusal(tmp_path / "rgb", tmp_path)
    (path, *_) = write_series(tmp_path / "inverted")
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2 ", b"MONOCHROME1 "))
    assert "one grey value (MONOCHROME2), got MONOCHROME1" in refusal(tmp_path / "inverted", tmp_path)


def test_many_frames_in_a_file(tmp_path: Path) -> None:
    frames = SimpleITK.GetImageFromArray(slices().astype(np.uint16))
    frames.SetMetaData("0020|000e", UID)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(2):
        writer.SetFileName(str(tmp_path / f"{number}.dcm"))
        writer.Execute(frames)
    assert "one slice a file, got a file of 6 frames" in refusal(tmp_path, tmp_path)


def test_damaged_slices(tmp_path: Path) -> None:
    """Cut off at any point, a slice is missing, and its series is refused; cut off since the search, too."""
    paths = write_series(tmp_path / "in")
    whole = paths[-1].read_bytes()
    case = only(tmp_path / "in")
    for share in (0.0, 0.2, 0.6, 0.9, 0.999):
        paths[-1].write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CaseError, match="must have readable slices"):
            volume_file(case, tmp_path)
    paths[-1].write_bytes(whole[: int(0.9 * len(whole))])
    assert "must have readable slices" in refusal(tmp_path / "in", tmp_path)
    paths[-1].unlink()
    with pytest.raises(CaseError, match="one that is damaged or missing"):
        volume_file(case, tmp_path)


def test_files_and_problems_pass_through(tmp_path: Path) -> None:
    file = tmp_path / "scan.nii"
    assert volume_file(Case("scan", (file,), "scan.nii"), tmp_path / "never") == file
    with pytest.raises(CaseError, match=r"^case scan: file a/scan.nii must lie elsewhere$"):
        volume_file(Case("scan", (), "a/scan.nii", problem="must lie elsewhere"), tmp_path)


def test_the_patient_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / PATIENT
    paths = write_series(folder, names="Schmidt{:03}")
    case = only(tmp_path)
    content = volume_file(case, tmp_path).read_bytes()
    texts = [repr((case.name, case.shown))]
    paths[2].write_bytes(paths[2].read_bytes()[:-50])
    with pytest.raises(CaseError) as caught:
        volume_file(case, tmp_path)
    texts += [str(caught.value), scrub(f"{caught.value.__cause__}", case), refusal(folder, tmp_path)]
    texts += [scrub(f"GDCM: cannot read {paths[0]}, or {paths[1].name}, in {folder}", case), *capfd.readouterr()]
    for secret in ("Schmidt", "Hannelore", PATIENT_ID, DATE):
        assert secret.encode() not in content
        assert not [text for text in texts if secret in text]


def test_real_series(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    folder = shared("dicom_series")
    case = only(folder)
    assert case.name == case.shown == "series-67ca2283a388"
    assert len(case.files) == 32
    path = volume_file(case, tmp_path)
    image = nib.load(path)
    voxels, affine = as_itk(folder)
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert image.shape == (35, 51, 32)
    for secret in (b"Avasarala", b"Chrisjen", b"PGBM", b"20200119", b"8701449723783444"):
        assert secret not in path.read_bytes()
