"""What is written lies on the patient's grid for every reader, says nothing it should not, and is never half a file."""

import logging
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Spacingd
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from unoise_monai.handlers.savers import QUANTITIES, ImportanceSaver, map_quantity, save_nifti

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
    save_nifti(values, AFFINE, tmp_path / "out" / "map.nii.gz", source, "U-Noise importance, 0 to 1")
    image = assert_on_grid(tmp_path / "out" / "map.nii.gz", np.float32)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), values.astype(np.float32))
    header = image.header
    assert header["descrip"].item() == b"U-Noise importance, 0 to 1"
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 1)
    assert header.get_dim_info() == (1, 0, 2)


def test_nothing_private_or_wrong_leaks_from_the_source(tmp_path: Path, source: Path) -> None:
    save_nifti(importance_map(), AFFINE, tmp_path / "map.nii", source)
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
    save_nifti(labels, AFFINE, tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(assert_on_grid(tmp_path / "seg.nii.gz", dtype).get_fdata(), labels)


def test_display_range_covers_sigma(tmp_path: Path) -> None:
    save_nifti(map_quantity(importance_map(), "sigma"), AFFINE, tmp_path / "map.nii.gz")
    header = nib.load(tmp_path / "map.nii.gz").header
    assert float(header["cal_min"]) == 0
    assert 4.5 < float(header["cal_max"]) <= 5


def test_description_is_cut_between_characters(tmp_path: Path) -> None:
    save_nifti(importance_map(), AFFINE, tmp_path / "map.nii.gz", description="x" * 78 + "ä")
    assert nib.load(tmp_path / "map.nii.gz").header["descrip"].item() == b"x" * 78


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        save_nifti(importance_map(), AFFINE, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_sheared_affine_is_an_s_form_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheared = AFFINE.copy()
    sheared[:3, :3] = AFFINE[:3, :3] @ np.array([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    with caplog.at_level(logging.WARNING):
        save_nifti(importance_map(), sheared, tmp_path / "map.nii.gz")
    assert "map.nii.gz has a sheared affine: SimpleITK and 3D Slicer will refuse it" in caplog.text
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
    save_nifti(importance_map(), AFFINE, old)
    before = old.read_bytes()
    monkeypatch.setattr(*broken, fail)
    for path in (old, tmp_path / "new.nii.gz"):
        with pytest.raises(OSError, match="disk full"):
            save_nifti(1 - importance_map(), AFFINE, path)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == before


def test_refuses_what_would_not_be_a_map(tmp_path: Path, source: Path) -> None:
    path, good = tmp_path / "map.nii.gz", importance_map()
    with pytest.raises(ValueError, match=r"array must be 3-D and not empty, got shape \(1, 7, 6, 5\)"):
        save_nifti(good[None], AFFINE, path)
    with pytest.raises(ValueError, match="array must hold finite values only, got 210 NaN or infinite of 210"):
        save_nifti(good * np.nan, AFFINE, path)
    with pytest.raises(ValueError, match="finite"):
        save_nifti(good + 1e300, AFFINE, path)
    with pytest.raises(ValueError, match="whole numbers within int16, got 40000 to 40000"):
        save_nifti(np.full(SHAPE, 40000), AFFINE, path)
    with pytest.raises(ValueError, match=r"affine must be 4x4, got shape \(3, 3\)"):
        save_nifti(good, np.eye(3), path)
    flat, parallel = AFFINE.copy(), AFFINE.copy()
    flat[:, 0] = 0
    parallel[:, 0] = parallel[:, 1]
    for affine in (flat, parallel, AFFINE * np.nan):
        with pytest.raises(ValueError, match="affine must be finite and not singular"):
            save_nifti(good, affine, path)
    with pytest.raises(ValueError, match=r"path must end in .nii or .nii.gz"):
        save_nifti(good, AFFINE, tmp_path / "map.nrrd")
    with pytest.raises(ValueError, match=r"must lie on the grid of its source case_01.nii.gz, of shape \(7, 6, 5\)"):
        save_nifti(good[1:], AFFINE, path, source)
    with pytest.raises(ValueError, match=r"must lie on the grid of its source .* got an affine"):
        save_nifti(good, np.eye(4), path, source)
    assert not path.exists()


def test_microscopic_voxels_are_not_singular(tmp_path: Path) -> None:
    affine = AFFINE @ np.diag([1e-5, 1e-5, 1e-5, 1])
    save_nifti(importance_map(), affine, tmp_path / "map.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "map.nii.gz").affine, affine, rtol=1e-5)


class Maps(torch.nn.Module):
    """Logits of two classes and an importance from the intensities alone, as ``ExplainedSegmenter`` lays them out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = ((x + 1024) / 1424.5).clamp(0, 1)
        return torch.cat([1 - share, share, share], dim=1)


def output(path: Path, **changes: object) -> dict[str, object]:
    meta = {"filename_or_obj": str(path)}
    tensor = MetaTensor(torch.as_tensor(importance_map())[None], affine=torch.as_tensor(AFFINE), meta=meta)
    return {"importance": tensor, "seg": (tensor > 0.5).float()} | changes


def engine_with(*items: object) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(output=list(items)))


def test_evaluator_writes_maps_on_the_input_grid(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From file to file through a real evaluator that turns and resamples the scan before the network sees it."""
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (1.0, 1.0, 1.0)),
        ]
    )

    def split(item: dict[str, object]) -> dict[str, object]:
        pred = item["pred"]
        assert isinstance(pred, torch.Tensor)
        return item | {"seg": pred[:2].argmax(0, keepdim=True).float(), "importance": pred[2:]}

    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=False),
            split,
        ]
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": str(source)}], before), batch_size=1),
        network=Maps(),
        postprocessing=after,
        decollate=True,
    )
    ImportanceSaver(tmp_path / "out").attach(evaluator)
    with caplog.at_level(logging.INFO):
        evaluator.run()
    folder = tmp_path / "out" / "case_01"
    assert sorted(path.name for path in folder.iterdir()) == ["case_01_importance.nii.gz", "case_01_seg.nii.gz"]
    values = assert_on_grid(folder / "case_01_importance.nii.gz", np.float32).get_fdata()
    labels = assert_on_grid(folder / "case_01_seg.nii.gz", np.uint8).get_fdata()
    # The maps follow the intensities, which are a ramp along X: so must the files, within what resampling blurs.
    share = (nib.load(source).get_fdata() + 1024) / 1424.5
    inner = (slice(1, -1), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(values[inner], share[inner], atol=0.1)
    assert set(np.unique(labels)) == {0, 1}
    assert str(tmp_path) not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("unoise_monai"))
    assert "case_01: wrote importance and segmentation" in caplog.text


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_each_quantity_has_its_own_file(tmp_path: Path, quantity: str) -> None:
    saver = ImportanceSaver(tmp_path, quantity, 0.0, 2.0)
    saver(engine_with(output(Path("scan_7.nii.gz"))))
    image = assert_on_grid(tmp_path / "scan_7" / f"scan_7_{quantity}.nii.gz", np.float32)
    expected = map_quantity(importance_map().astype(np.float32), quantity, 0.0, 2.0)
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-6)
    assert QUANTITIES[quantity].encode() in image.header["descrip"].item()


def test_half_precision_maps_are_written(tmp_path: Path) -> None:
    item = output(Path("a.nii.gz"))
    item["importance"] = item["importance"].to(torch.bfloat16)  # type: ignore[attr-defined]
    ImportanceSaver(tmp_path)(engine_with(item))
    assert_on_grid(tmp_path / "a" / "a_importance.nii.gz", np.float32)


def test_refuses_outputs_it_cannot_write(tmp_path: Path) -> None:
    saver = ImportanceSaver(tmp_path)
    path = Path("a.nii.gz")
    with pytest.raises(KeyError, match="'seg' must be in the engine's output"):
        saver(engine_with({"importance": output(path)["importance"]}))
    with pytest.raises(ValueError, match="'seg' must hold class indices"):
        saver(engine_with(output(path, seg=output(path)["importance"])))
    with pytest.raises(ValueError, match="quantity must be one of"):
        ImportanceSaver(tmp_path, "noise")
    with pytest.raises(ValueError, match="sigma_max must be greater than sigma_min"):
        ImportanceSaver(tmp_path, sigma_min=5.0, sigma_max=1.0)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_second_scan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    saver = ImportanceSaver(tmp_path / "out")
    saver(engine_with(output(tmp_path / "a" / "scan.nii.gz")))
    before = (tmp_path / "out" / "scan" / "scan_seg.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="case names must differ within a run"):
        saver(engine_with(output(tmp_path / "b" / "scan.nii.gz")))
    assert (tmp_path / "out" / "scan" / "scan_seg.nii.gz").read_bytes() == before
