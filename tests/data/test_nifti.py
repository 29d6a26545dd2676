"""What is written lies on the patient's grid for every reader, says nothing it should not, and is never half a file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from unoise_monai.data.nifti import check_affine, is_sheared, write_nifti

# Oblique, anisotropic, left-handed, away from the origin.
AFFINE = from_matvec(euler2mat(0.9, -0.6, 0.35) @ np.diag([0.7, 1.1, -2.5]), [91.3, -120.7, 33.1])
SHAPE = (7, 6, 5)
LPS = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A scan with everything in its header that must not reach the map."""
    path = tmp_path / "scans" / "case_01.nii.gz"
    path.parent.mkdir()
    # Fractions stored as int16: nibabel gives the file a slope and an intercept.
    image = nib.Nifti1Image(np.linspace(-1024, 400.5, 210).reshape(SHAPE), AFFINE, dtype=np.int16)
    image.set_sform(AFFINE, 2)
    image.set_qform(AFFINE, 1)
    header = image.header
    header["descrip"] = b"Jane Doe 1970"
    header["aux_file"] = b"jane.aux"
    header["db_name"] = b"Jane"
    header["cal_min"], header["cal_max"] = -160, 240
    header.set_intent("t test", (5,), name="Jane")
    header.set_xyzt_units("mm", "sec")
    header.set_dim_info(1, 0, 2)
    header["toffset"] = 12.5
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, path)
    assert nib.load(path).dataobj.slope != 1
    return path


def importance_map() -> np.ndarray:
    return np.random.default_rng(1).random(SHAPE)


def assert_on_grid(path: Path, dtype: type) -> nib.Nifti1Image:
    image = nib.load(path)
    header = image.header
    assert image.shape == SHAPE
    assert header.get_data_dtype() == dtype
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    for affine in (image.affine, image.get_qform(), image.get_sform()):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert header.get_xyzt_units() == ("mm", "unknown")
    itk = sitk.ReadImage(str(path))
    assert itk.GetSize() == SHAPE
    direction = np.reshape(itk.GetDirection(), (3, 3)) @ np.diag(itk.GetSpacing())
    np.testing.assert_allclose(LPS @ direction, AFFINE[:3, :3], atol=1e-5)
    np.testing.assert_allclose(LPS @ itk.GetOrigin(), AFFINE[:3, 3], atol=1e-5)
    np.testing.assert_allclose(sitk.GetArrayFromImage(itk).T, image.get_fdata(), rtol=1e-6)
    return image


def test_nibabel_and_simpleitk_read_the_source_grid(tmp_path: Path, source: Path) -> None:
    values = importance_map()
    path = tmp_path / "out" / "map.nii.gz"
    write_nifti(path, values, AFFINE, "U-Noise importance, 0 to 1", source)
    image = assert_on_grid(tmp_path / "out" / "map.nii.gz", np.float32)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), values.astype(np.float32))
    header = image.header
    assert header["descrip"].item() == b"U-Noise importance, 0 to 1"
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 1)
    assert header.get_dim_info() == (1, 0, 2)
    # Missing folders are made, and nothing else lies there.
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["map.nii.gz"]


def test_nothing_private_or_wrong_leaks_from_the_source(tmp_path: Path, source: Path) -> None:
    write_nifti(tmp_path / "map.nii", importance_map(), AFFINE, source=source)
    image = nib.load(tmp_path / "map.nii")
    header = image.header
    raw = (tmp_path / "map.nii").read_bytes()
    assert b"Jane" not in raw
    assert b"jane" not in raw
    assert len(header.extensions) == 0
    assert header.get_intent()[0] == "none"
    assert float(header["toffset"]) == 0
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 255], np.uint8), ([0, 256], np.int16), ([-1, 3], np.int16), ([False, True], np.uint8)]
)
def test_labels_take_the_smallest_type(tmp_path: Path, values: list[int], dtype: type) -> None:
    labels = np.resize(np.array(values), SHAPE)
    write_nifti(tmp_path / "seg.nii.gz", labels, AFFINE)
    np.testing.assert_array_equal(assert_on_grid(tmp_path / "seg.nii.gz", dtype).get_fdata(), labels)


def test_display_range_covers_the_values(tmp_path: Path) -> None:
    write_nifti(tmp_path / "map.nii.gz", np.linspace(-2, 5, 210).reshape(SHAPE), AFFINE)
    header = nib.load(tmp_path / "map.nii.gz").header
    assert (float(header["cal_min"]), float(header["cal_max"])) == (-2, 5)


def test_description_is_cut_between_characters(tmp_path: Path) -> None:
    write_nifti(tmp_path / "map.nii.gz", importance_map(), AFFINE, description="x" * 78 + "ä")
    assert nib.load(tmp_path / "map.nii.gz").header["descrip"].item() == b"x" * 78


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, importance_map(), AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_sheared_affine_is_an_s_form_alone(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[:3, :3] = AFFINE[:3, :3] @ np.array([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    assert is_sheared(sheared)
    assert not is_sheared(AFFINE)
    write_nifti(tmp_path / "map.nii.gz", importance_map(), sheared)
    image = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(image.affine, sheared, atol=1e-5)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 1)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "map.nii.gz"))


@pytest.mark.parametrize("broken", [(nib, "save"), (Path, "replace")])
def test_failure_leaves_no_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[object, str]
) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    old = tmp_path / "old.nii.gz"
    write_nifti(old, importance_map(), AFFINE)
    before = old.read_bytes()
    monkeypatch.setattr(*broken, fail)
    for path in (old, tmp_path / "new.nii.gz"):
        with pytest.raises(OSError, match="disk full"):
            write_nifti(path, 1 - importance_map(), AFFINE)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == before


def test_refuses_what_would_not_be_a_map(tmp_path: Path, source: Path) -> None:
    path, good = tmp_path / "map.nii.gz", importance_map()
    with pytest.raises(ValueError, match=r"array must be 3-D and not empty, got shape \(1, 7, 6, 5\)"):
        write_nifti(path, good[None], AFFINE)
    with pytest.raises(ValueError, match="array must hold finite values only, got 210 NaN or infinite of 210"):
        write_nifti(path, good * np.nan, AFFINE)
    with pytest.raises(ValueError, match="finite"):
        write_nifti(path, good + 1e300, AFFINE)
    with pytest.raises(ValueError, match="array must hold real numbers, got dtype complex128"):
        write_nifti(path, good + 1j, AFFINE)
    with pytest.raises(ValueError, match="whole numbers within int16, got 40000 to 40000"):
        write_nifti(path, np.full(SHAPE, 40000), AFFINE)
    with pytest.raises(ValueError, match=r"affine must be 4x4, got shape \(3, 3\)"):
        write_nifti(path, good, np.eye(3))
    flat, parallel = AFFINE.copy(), AFFINE.copy()
    flat[:, 0] = 0
    parallel[:, 0] = parallel[:, 1]
    for affine in (flat, parallel, AFFINE * np.nan):
        with pytest.raises(ValueError, match="affine must be finite and not singular"):
            write_nifti(path, good, affine)
    with pytest.raises(ValueError, match=r"path must end in .nii or .nii.gz"):
        write_nifti(tmp_path / "map.nrrd", good, AFFINE)
    with pytest.raises(ValueError, match=r"must lie on the grid of its source case_01.nii.gz, of shape \(7, 6, 5\)"):
        write_nifti(path, good[1:], AFFINE, source=source)
    with pytest.raises(ValueError, match=r"must lie on the grid of its source .* got an affine"):
        write_nifti(path, good, np.eye(4), source=source)
    assert not path.exists()


def test_microscopic_voxels_are_not_singular(tmp_path: Path) -> None:
    affine = AFFINE @ np.diag([1e-5, 1e-5, 1e-5, 1])
    write_nifti(tmp_path / "map.nii.gz", importance_map(), affine)
    np.testing.assert_allclose(nib.load(tmp_path / "map.nii.gz").affine, affine, rtol=1e-5)
    np.testing.assert_array_equal(check_affine(affine.tolist()), affine)


def test_shear_is_one_of_directions_whatever_the_voxel_size() -> None:
    small = np.diag([5.0, 5.0, 5.0, 1.0])
    small[0, 1] = 5 * 5e-5
    assert not is_sheared(small)
    small[0, 1] = 5 * 1e-3
    assert is_sheared(small)


@pytest.mark.parametrize("name", ["scan.nii.gz", "SCAN.NII.GZ"])
def test_a_source_a_hundredth_off_is_another_grid(name: str, tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.01
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), moved), tmp_path / "scan.nii.gz")
    source = (tmp_path / "scan.nii.gz").rename(tmp_path / name)
    with pytest.raises(ValueError, match="must lie on the grid of its source"):
        write_nifti(tmp_path / "map.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE, source=source)
