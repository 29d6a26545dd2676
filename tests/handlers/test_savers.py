"""Each case's volumes and pictures lie in its own folder, on its own grid, and show what its file holds."""

import logging
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImage, LoadImaged, Orientationd, Spacingd
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from PIL import Image

from unoise_monai.handlers.savers import (
    DISPLAY_PERCENTILE,
    QUANTITIES,
    ImportanceSaver,
    PictureSaver,
    Saver,
    display_scale,
    item_volume,
    label_voxels,
    map_quantity,
    output_items,
    to_numpy,
)
from unoise_monai.render import mips, montage, rotating_mip, to_canonical

SHAPE = (16, 14, 12)
SPACING_MM = (1.0, 1.5, 2.0)
# Oblique, anisotropic, left-handed, away from the origin.
AFFINE = from_matvec(euler2mat(0.9, -0.6, 0.35) @ np.diag([0.7, 1.1, -2.5]), [91.3, -120.7, 33.1])
# Of scans that stand as they are shown, which makes pictures easy to expect.
UPRIGHT = from_matvec(euler2mat(0.2, -0.1, 0.15) @ np.diag(SPACING_MM), [12.5, -7, 3])
DICOM = Path(__file__).parents[2].parent / "shared" / "data" / "dicom_series"
rng = np.random.default_rng(9)
SCAN = rng.normal(0, 100, SHAPE).astype(np.float32)
IMPORTANCE = rng.random(SHAPE).astype(np.float32)
SEGMENTATION = np.zeros(SHAPE, dtype=np.float32)
SEGMENTATION[5:10, 4:9, 3:8] = 1
# Few values, so that the ranks tie, and both ends.
TIED = rng.choice([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0], size=(4, 3, 5)).astype(np.float32)


def on_grid(array: np.ndarray | torch.Tensor, path: Path | str, affine: np.ndarray = AFFINE) -> MetaTensor:
    """A map ``(X, Y, Z)`` of the file at ``path``, ``(1, X, Y, Z)``."""
    volume = array[None] if isinstance(array, torch.Tensor) else torch.as_tensor(array.copy())[None]
    return MetaTensor(volume, affine=torch.as_tensor(affine), meta={"filename_or_obj": str(path)})


def maps(path: Path | str, **changes: object) -> dict[str, object]:
    return {"importance": on_grid(IMPORTANCE, path), "seg": on_grid(SEGMENTATION, path)} | changes


def stored(path: Path, orientation: np.ndarray | None = None) -> dict[str, MetaTensor]:
    """Store the scan in ``path`` in another order of axes, and the maps on its grid."""
    turn = np.array([[0, 1], [1, 1], [2, 1]]) if orientation is None else orientation
    affine = UPRIGHT @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(nib.apply_orientation(SCAN, turn), affine), path)
    arrays = {"importance": IMPORTANCE, "seg": SEGMENTATION}
    return {key: on_grid(nib.apply_orientation(array, turn), path, affine) for key, array in arrays.items()}


def engine_with(*items: object) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(output=list(items)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


class Noting(Saver):
    """Writes nothing, and keeps what it was asked to write."""

    def __init__(self, output_dir: Path) -> None:
        super().__init__(output_dir)
        self.saved: list[tuple[str, Path]] = []

    def files(self, case: str, method: str = "") -> list[str]:
        return [f"{case}.txt"]

    def save(self, item: object, case: str, folder: Path, scan: object = None, method: str = "") -> None:
        self.saved.append((case, folder))


@pytest.mark.parametrize("make", [Noting, ImportanceSaver, lambda out: PictureSaver(out, ["montage"], count=1)])
def test_a_case_has_one_folder_and_one_source(tmp_path: Path, make: type[Saver]) -> None:
    saver = make(tmp_path / "out")
    first = stored(tmp_path / "a" / "scan.nii.gz")
    saver(engine_with(first))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    # The same file by another spelling is the same case.
    (tmp_path / "b").mkdir()
    saver(
        engine_with({**first, "importance": on_grid(IMPORTANCE, tmp_path / "b" / ".." / "a" / "scan.nii.gz", UPRIGHT)})
    )
    with pytest.raises(ValueError, match="case names must differ within a run, got 'scan' from"):
        saver(engine_with(stored(tmp_path / "b" / "scan.nii.gz")))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    # Another run is another saver; and an item that has a name is called so.
    make(tmp_path / "other")(engine_with(stored(tmp_path / "b" / "scan.nii.gz")))
    saver(engine_with({**stored(tmp_path / "b" / "scan.nii.gz"), "case": "second"}))
    if isinstance(saver, Noting):
        assert saver.saved == [(name, tmp_path / "out" / name) for name in ("scan", "scan", "second")]
    else:
        assert names_in(tmp_path / "out") == ["scan", "second"]
        assert names_in(tmp_path / "out" / "second") == sorted(saver.files("second"))


def test_the_files_of_a_saver_are_its_own_affair(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        Saver().files("a")
    with pytest.raises(NotImplementedError):
        Saver().save({}, "a", tmp_path)


def test_items_are_dictionaries_in_a_list() -> None:
    items = [{"seg": 1}, {"seg": 2}]
    assert output_items(SimpleNamespace(state=SimpleNamespace(output=items))) is items
    for output in ({"seg": 1}, [torch.zeros(1)], None):
        with pytest.raises(TypeError, match="must be a list of dictionaries, one an item"):
            output_items(SimpleNamespace(state=SimpleNamespace(output=output)))


def test_volumes_know_their_file() -> None:
    good = on_grid(SEGMENTATION, "a.nii.gz")
    assert item_volume({"seg": good}, "seg") is good
    with pytest.raises(KeyError, match=r"'seg' must be in the engine's output, got keys \['pred'\]"):
        item_volume({"pred": good}, "seg")
    for bad in (torch.zeros(1, 2, 3, 4), MetaTensor(torch.zeros(1, 2, 3, 4)), 3):
        with pytest.raises(TypeError, match="'seg' must be a MetaTensor whose meta holds 'filename_or_obj'"):
            item_volume({"seg": bad}, "seg")
    for shape in ((3, 4), (2, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"'seg' must be of shape \(1, X, Y, Z\), got"):
            item_volume({"seg": on_grid(torch.zeros(shape), "a.nii.gz")}, "seg")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_voxels_and_affine_reach_numpy(dtype: torch.dtype) -> None:
    voxels, affine = to_numpy(on_grid(torch.arange(24).reshape(2, 3, 4).to(dtype), "a.nii.gz"))
    np.testing.assert_array_equal(voxels, np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(affine, AFFINE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_that_are_integers_stay_as_they_are(dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(2, 3, 4).to(dtype)
    labels = label_voxels(on_grid(whole, "a.nii.gz"), "seg")
    assert labels.dtype == whole.numpy().dtype
    np.testing.assert_array_equal(labels, whole.numpy())


@pytest.mark.parametrize(
    ("highest", "lowest", "expected"),
    [
        (2, 0, np.uint8),
        (255, 0, np.uint8),
        (256, 0, np.uint16),
        (127, -1, np.int8),
        (128, -1, np.int16),
        (70_000, 0, np.uint32),
        (2**24, -(2**24), np.int32),
    ],
)
def test_labels_that_are_floats_get_the_smallest_type(highest: int, lowest: int, expected: type) -> None:
    whole = torch.zeros(2, 3, 4)
    whole[0, 0, 0], whole[1, 2, 3] = highest, lowest
    labels = label_voxels(on_grid(whole, "a.nii.gz"), "seg")
    assert labels.dtype == expected
    np.testing.assert_array_equal(labels, whole.numpy())


@pytest.mark.parametrize("bad", [0.5, float("nan"), float("inf"), -float("inf"), 2.0**25, -(2.0**25)])
def test_labels_are_whole_numbers(bad: float) -> None:
    odd = torch.ones(2, 2, 2)
    odd[1, 0, 1] = bad
    with pytest.raises(ValueError, match="'seg' must hold class indices, whole numbers of at most 16777216, got"):
        label_voxels(on_grid(odd, "a.nii.gz"), "seg")


def naive(name: str, p: float, values: list[float]) -> float:
    if name == "importance":
        return p
    if name == "tolerance":
        return 1 - p
    if name == "sigma":
        return 0.5 + (1 - p) * (3.0 - 0.5)
    if name == "logit":
        clamped = min(max(p, 1e-7), 1 - 1e-7)
        return max(0.0, math.log(clamped / (1 - clamped)))
    below = sum(other < p for other in values)
    equal = sum(other == p for other in values)
    return 100 * (below + equal / 2) / len(values)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_equals_its_formula(name: str) -> None:
    result = map_quantity(TIED, name, 0.5, 3.0)
    values = [float(value) for value in TIED.ravel()]
    assert result.dtype == np.float32
    assert result.shape == TIED.shape
    for index in product(*map(range, TIED.shape)):
        assert result[index] == pytest.approx(naive(name, float(TIED[index]), values), rel=1e-5, abs=1e-6)


def test_logit_undoes_the_sigmoid_where_positive() -> None:
    logit = rng.normal(0, 3, (5, 5, 5))
    result = map_quantity(1 / (1 + np.exp(-logit)), "logit")
    np.testing.assert_allclose(result, np.maximum(logit, 0), atol=1e-5)


def test_percentile_of_a_constant_map_is_the_middle() -> None:
    np.testing.assert_array_equal(map_quantity(np.full((3, 3, 3), 0.2), "percentile"), 50)


def test_leaves_the_input_alone_and_clips_resampling_errors() -> None:
    importance = np.array([[[-5e-4, 1 + 5e-4]]], dtype=np.float32)
    before = importance.copy()
    np.testing.assert_array_equal(map_quantity(importance), [[[0, 1]]])
    np.testing.assert_array_equal(importance, before)


def test_quantities_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"quantity must be one of 'importance', .*, got 'noise'"):
        map_quantity(TIED, "noise")
    with pytest.raises(ValueError, match=r"sigma_max must be greater than sigma_min, got 1.0 and 5.0"):
        map_quantity(TIED, "sigma", 5.0, 1.0)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
            map_quantity(np.full((2, 2, 2), bad))


class Maps(torch.nn.Module):
    """Logits of two classes and an importance from the intensities alone, as ``ExplainedSegmenter`` lays them out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = ((x + 1024) / 1424.5).clamp(0, 1)
        return torch.cat([1 - share, share, share], dim=1)


def test_an_evaluator_writes_maps_on_the_input_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From file to file through a real evaluator that turns and resamples the scan before the network sees it."""
    ramp = np.linspace(-1024, 400.5, SCAN.size).reshape(SHAPE)
    nib.save(nib.Nifti1Image(ramp, AFFINE), tmp_path / "case_01.nii.gz")
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

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": str(tmp_path / "case_01.nii.gz")}], before), batch_size=1),
        network=Maps(),
        postprocessing=Compose([Invertd("pred", before, orig_keys="image", nearest_interp=False), split]),
        decollate=True,
    )
    ImportanceSaver(tmp_path / "out").attach(evaluator)
    with caplog.at_level(logging.INFO):
        evaluator.run()
    folder = tmp_path / "out" / "case_01"
    assert names_in(folder) == ["case_01_importance.nii.gz", "case_01_seg.nii.gz"]
    written = [nib.load(folder / name) for name in names_in(folder)]
    assert [image.get_data_dtype() for image in written] == [np.float32, np.uint8]
    for image in written:
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    # The maps follow the intensities, which are a ramp along X: so must the files, within what resampling blurs.
    values, labels = (image.get_fdata() for image in written)
    inner = (slice(1, -1), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(values[inner], ((ramp + 1024) / 1424.5)[inner], atol=0.1)
    assert set(np.unique(labels)) == {0, 1}
    assert str(tmp_path) not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("unoise_monai"))
    assert "case_01: wrote case_01_importance.nii.gz, case_01_seg.nii.gz" in caplog.text


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_each_quantity_has_its_own_file(tmp_path: Path, quantity: str) -> None:
    saver = ImportanceSaver(tmp_path, quantity, 0.0, 2.0)
    saver(engine_with(maps("scan_7.nii.gz")))
    assert names_in(tmp_path / "scan_7") == sorted(saver.files("scan_7"))
    image = nib.load(tmp_path / "scan_7" / f"scan_7_{quantity}.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.get_fdata(), map_quantity(IMPORTANCE, quantity, 0.0, 2.0), rtol=1e-6)
    assert image.header["descrip"].item() == f"U-Noise {QUANTITIES[quantity]}".encode()
    labels = nib.load(tmp_path / "scan_7" / "scan_7_seg.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.get_fdata(), SEGMENTATION)


def test_a_methods_map_is_written_as_it_is(tmp_path: Path) -> None:
    saver = ImportanceSaver(tmp_path, "sigma", 0.0, 2.0)
    saver.save(maps("a.nii.gz", saliency=on_grid(SCAN, "a.nii.gz")), "a", tmp_path, method="saliency")
    assert names_in(tmp_path) == saver.files("a", "saliency") == ["a_saliency.nii.gz"]
    image = nib.load(tmp_path / "a_saliency.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), SCAN)
    assert image.header["descrip"].item() == b"attribution by saliency, raw values"


def test_half_precision_maps_are_written(tmp_path: Path) -> None:
    half = on_grid(torch.from_numpy(IMPORTANCE).to(torch.bfloat16), "a.nii.gz")
    ImportanceSaver(tmp_path)(engine_with(maps("a.nii.gz", importance=half)))
    written = nib.load(tmp_path / "a" / "a_importance.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.get_fdata(), IMPORTANCE, atol=4e-3)


def test_of_a_sheared_grid_the_log_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheared = AFFINE.copy()
    sheared[:3, :3] = AFFINE[:3, :3] @ np.array([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    item = {
        key: on_grid(array, "a.nii.gz", sheared) for key, array in (("importance", IMPORTANCE), ("seg", SEGMENTATION))
    }
    with caplog.at_level(logging.WARNING):
        ImportanceSaver(tmp_path)(engine_with(item))
    for name in ("importance", "seg"):
        assert f"a_{name}.nii.gz has a sheared affine: SimpleITK and 3D Slicer will refuse it" in caplog.text
    np.testing.assert_allclose(nib.load(tmp_path / "a" / "a_importance.nii.gz").affine, sheared, atol=1e-5)


def test_refuses_outputs_it_cannot_write(tmp_path: Path) -> None:
    saver = ImportanceSaver(tmp_path)
    with pytest.raises(KeyError, match="'seg' must be in the engine's output"):
        saver(engine_with({"importance": on_grid(IMPORTANCE, "a.nii.gz")}))
    with pytest.raises(ValueError, match="'seg' must hold class indices"):
        saver(engine_with(maps("a.nii.gz", seg=on_grid(IMPORTANCE, "a.nii.gz"))))
    with pytest.raises(TypeError, match=r"items must hold a MetaTensor .* got none under keys \['seg'\]"):
        saver(engine_with({"seg": torch.zeros(1, 2, 2, 2)}))
    with pytest.raises(ValueError, match="quantity must be one of"):
        ImportanceSaver(tmp_path, "noise")
    with pytest.raises(ValueError, match="sigma_max must be greater than sigma_min"):
        ImportanceSaver(tmp_path, sigma_min=5.0, sigma_max=1.0)
    # A map off the grid of the file that it belongs to.
    stored(tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match=r"must lie on the grid of its source b.nii.gz, got an affine"):
        saver(engine_with(maps(tmp_path / "b.nii.gz")))
    assert not list(tmp_path.rglob("*_*.nii.gz"))


def test_a_map_is_shown_up_to_a_percentile() -> None:
    values = np.arange(-500, 1501, dtype=np.float32)
    top = np.percentile(values, DISPLAY_PERCENTILE)
    np.testing.assert_allclose(display_scale(values), (values / top).clip(0, 1), rtol=1e-6)
    # Few voxels that are not zero would all lie above the percentile.
    single = np.zeros(2000)
    single[7] = 3
    np.testing.assert_array_equal(display_scale(single), single / 3)
    # Of a distance, which is negative everywhere, the farthest is 0.
    far = display_scale(np.linspace(-9, -1, 5))
    assert (far[0], far[-1]) == (0, 1)
    np.testing.assert_array_equal(display_scale(np.zeros(5)), 0)


def test_an_engine_writes_the_pictures_of_each_case(tmp_path: Path) -> None:
    """The second case is left-handed and stored in another order of axes."""
    items = [stored(tmp_path / "a.nii.gz"), stored(tmp_path / "b.nii.gz", np.array([[2, -1], [0, 1], [1, -1]]))]
    engine = Engine(lambda _, batch: [batch])
    options = {"axis": 1, "count": 2, "crop_mm": 2.0, "slab_mm": 6.0, "window": [-100, 100], "threshold": 0.6}
    PictureSaver(tmp_path / "out", **options).attach(engine)  # type: ignore[arg-type]
    engine.run(items)
    look = {"window": (-100, 100), "threshold": 0.6}
    volumes = (SCAN, SPACING_MM, IMPORTANCE, SEGMENTATION)
    slices = montage(*volumes, axis=1, count=2, crop_mm=2.0, **look)
    projections = mips(*volumes, slab_mm=6.0, **look)
    for name in "ab":
        folder = tmp_path / "out" / name
        assert names_in(folder) == [f"{name}_mip.png", f"{name}_montage.png"]
        np.testing.assert_array_equal(picture(folder / f"{name}_montage.png"), slices)
        np.testing.assert_array_equal(picture(folder / f"{name}_mip.png"), projections)


def test_one_picture_of_them(tmp_path: Path) -> None:
    PictureSaver(tmp_path, pictures=["mip"])(engine_with(stored(tmp_path / "a.nii.gz")))
    assert names_in(tmp_path / "a") == ["a_mip.png"]


def test_the_rotation_is_an_animation(tmp_path: Path) -> None:
    PictureSaver(tmp_path, pictures=["rotation"], threshold=0.6)(engine_with(stored(tmp_path / "a.nii.gz")))
    assert names_in(tmp_path / "a") == ["a_rotation.gif"]
    frames = rotating_mip(SCAN, SPACING_MM, importance=IMPORTANCE, threshold=0.6)
    with Image.open(tmp_path / "a" / "a_rotation.gif") as animation:
        assert animation.n_frames == len(frames)
        assert animation.size == frames.shape[2:0:-1]
        first = np.asarray(animation.convert("RGB"), dtype=float)
    assert np.abs(first - frames[0]).mean() < 4


def test_a_methods_map_is_drawn_on_the_scan_that_is_given(tmp_path: Path) -> None:
    """Without reading the file again: the scan that is given here has other intensities."""
    item = stored(tmp_path / "a.nii.gz")
    scan = on_grid(-SCAN, tmp_path / "a.nii.gz", UPRIGHT)
    values = on_grid(SCAN, tmp_path / "a.nii.gz", UPRIGHT)
    saver = PictureSaver(tmp_path, pictures=["montage"], count=1)
    saver.save({**item, "saliency": values}, "a", tmp_path / "out", scan, "saliency")
    assert names_in(tmp_path / "out") == saver.files("a", "saliency") == ["a_saliency_montage.png"]
    label = f"saliency, share of its {DISPLAY_PERCENTILE:g}th percentile"
    expected = montage(-SCAN, SPACING_MM, display_scale(SCAN), SEGMENTATION, count=1, label=label)
    np.testing.assert_array_equal(picture(tmp_path / "out" / "a_saliency_montage.png"), expected)


def test_a_scan_lies_where_its_own_affine_says(tmp_path: Path) -> None:
    """MONAI's reader would take the q-form, whose voxels differ here from those of the s-form, which counts."""
    item = stored(tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    image.set_qform(UPRIGHT @ np.diag([1.01, 1, 1, 1]), 1)
    image.set_sform(UPRIGHT, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    PictureSaver(tmp_path, pictures=["montage"], count=1)(engine_with(item))
    assert names_in(tmp_path / "a") == ["a_montage.png"]


def test_no_pictures_need_no_scan(tmp_path: Path) -> None:
    PictureSaver(tmp_path, pictures=[])(engine_with(maps("not_there.nii.gz")))
    assert not list(tmp_path.iterdir())


def test_segmentation_may_be_left_out(tmp_path: Path) -> None:
    kept = stored(tmp_path / "a.nii.gz")
    del kept["seg"]
    PictureSaver(tmp_path, count=1, segmentation_key=None)(engine_with(kept))
    np.testing.assert_array_equal(
        picture(tmp_path / "a" / "a_montage.png"), montage(SCAN, SPACING_MM, IMPORTANCE, count=1)
    )
    np.testing.assert_array_equal(picture(tmp_path / "a" / "a_mip.png"), mips(SCAN, SPACING_MM, IMPORTANCE))
    with pytest.raises(KeyError, match="'seg' must be in the engine's output"):
        PictureSaver(tmp_path / "other")(engine_with(kept))


@pytest.mark.parametrize("key", ["importance", "seg"])
def test_refuses_maps_off_the_grid_of_the_scan(tmp_path: Path, key: str) -> None:
    kept = stored(tmp_path / "a.nii.gz")
    cut = kept | {key: kept[key][:, 1:]}
    with pytest.raises(
        ValueError, match=rf"'{key}' must lie on the grid of its scan a.nii.gz, of shape \(16, 14, 12\)"
    ):
        PictureSaver(tmp_path)(engine_with(cut))
    affine = kept[key].affine.numpy().copy()
    affine[0, 3] += 0.5
    moved = kept | {key: on_grid(kept[key][0].numpy(), tmp_path / "a.nii.gz", affine)}
    with pytest.raises(ValueError, match=rf"'{key}' must lie on the grid .* got an affine that differs by 0.5"):
        PictureSaver(tmp_path)(engine_with(moved))
    assert not list(tmp_path.rglob("*.png"))


def test_a_map_is_turned_as_its_scan_where_rounding_would_tell_them_apart(tmp_path: Path) -> None:
    """At 45 degrees the closest axes are a tie, which a difference far below the limit of the grid decides."""
    path = tmp_path / "a.nii.gz"
    shape, affines = (8, 8, 6), [euler2mat(np.pi / 4 + angle, 0, 0) for angle in (1e-7, -1e-7)]
    scan_affine, map_affine = (from_matvec(matrix, [12.5, -7, 3]) for matrix in affines)
    scan, importance = SCAN[: shape[0], : shape[1], : shape[2]], np.zeros(shape, dtype=np.float32)
    importance[5:, 6:, :] = 1
    nib.save(nib.Nifti1Image(scan, scan_affine), path)
    stored_affine = nib.load(path).affine
    assert (nib.io_orientation(stored_affine) != nib.io_orientation(map_affine)).any()
    assert np.abs(stored_affine - map_affine).max() < 1e-6
    arrays = {"importance": importance, "seg": (importance > 0).astype(np.uint8)}
    PictureSaver(tmp_path, pictures=["montage"], count=1)(
        engine_with({key: on_grid(array, path, map_affine) for key, array in arrays.items()})
    )
    (image, spacing_mm), (shares, _), (labels, _) = (
        to_canonical(array, stored_affine) for array in (scan, *arrays.values())
    )
    expected = montage(image, spacing_mm, shares, labels, count=1)
    np.testing.assert_array_equal(picture(tmp_path / "a" / "a_montage.png"), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": ["gif"]}, "picture must be one of 'montage', 'mip', 'rotation', got 'gif'"),
        ({"axis": 3}, "axis must be one of 0, 1, 2, got 3"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"crop_mm": -1}, "crop_mm must be a finite number of at least 0, got -1"),
        ({"slab_mm": 0}, "slab_mm must be a finite number above 0, got 0"),
        ({"style": "jet"}, "style must be one of 'colour', 'red', got 'jet'"),
        ({"window": (240, -160)}, "window must be"),
    ],
)
def test_refuses_bad_options_before_work_starts(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureSaver(tmp_path, **changes)


@pytest.mark.skipif(not DICOM.is_dir(), reason="needs ../shared/data, the DICOM series")
def test_a_dicom_series_is_read_from_its_folder(tmp_path: Path) -> None:
    scan = LoadImage(image_only=True)(DICOM)
    importance = np.linspace(0, 1, scan.numel(), dtype=np.float32).reshape(scan.shape)
    kept = {"importance": on_grid(importance, DICOM, scan.affine.numpy())}
    PictureSaver(tmp_path, segmentation_key=None)(engine_with(kept))
    assert names_in(tmp_path / "dicom_series") == ["dicom_series_mip.png", "dicom_series_montage.png"]
