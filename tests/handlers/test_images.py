"""The pictures beside the maps show the scan of the file, however that file is stored."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from PIL import Image

from unoise_monai.handlers.savers import PictureSaver
from unoise_monai.render import mips, montage, rotating_mip, to_canonical

SHAPE = (16, 14, 12)
SPACING_MM = (1.0, 1.5, 2.0)
AFFINE = from_matvec(euler2mat(0.2, -0.1, 0.15) @ np.diag(SPACING_MM), [12.5, -7, 3])
DICOM = Path(__file__).parents[2].parent / "shared" / "data" / "dicom_series"
rng = np.random.default_rng(9)
SCAN = rng.normal(0, 100, SHAPE).astype(np.float32)
IMPORTANCE = rng.random(SHAPE).astype(np.float32)
SEGMENTATION = np.zeros(SHAPE, dtype=np.float32)
SEGMENTATION[5:10, 4:9, 3:8] = 1


def item(path: Path, orientation: np.ndarray | None = None) -> dict[str, MetaTensor]:
    """Store the scan in ``path`` in another order of axes, and the maps on its grid."""
    turn = np.array([[0, 1], [1, 1], [2, 1]]) if orientation is None else orientation
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(nib.apply_orientation(SCAN, turn), affine), path)
    maps = {"importance": IMPORTANCE, "seg": SEGMENTATION}
    return {key: on_grid(nib.apply_orientation(array, turn), affine, path) for key, array in maps.items()}


def on_grid(array: np.ndarray, affine: np.ndarray, path: Path) -> MetaTensor:
    volume = torch.as_tensor(array.copy())[None]
    return MetaTensor(volume, affine=torch.as_tensor(affine), meta={"filename_or_obj": str(path)})


def engine_with(*items: object) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(output=list(items)))


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_engine_writes_the_pictures_of_each_case(tmp_path: Path) -> None:
    """The second case is left-handed and stored in another order of axes."""
    items = [item(tmp_path / "a.nii.gz"), item(tmp_path / "b.nii.gz", np.array([[2, -1], [0, 1], [1, -1]]))]
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
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}_mip.png", f"{name}_montage.png"]
        np.testing.assert_array_equal(picture(folder / f"{name}_montage.png"), slices)
        np.testing.assert_array_equal(picture(folder / f"{name}_mip.png"), projections)


def test_one_picture_of_them(tmp_path: Path) -> None:
    PictureSaver(tmp_path, pictures=["mip"])(engine_with(item(tmp_path / "a.nii.gz")))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["a_mip.png"]


def test_the_rotation_is_an_animation(tmp_path: Path) -> None:
    PictureSaver(tmp_path, pictures=["rotation"], threshold=0.6)(engine_with(item(tmp_path / "a.nii.gz")))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["a_rotation.gif"]
    frames = rotating_mip(SCAN, SPACING_MM, importance=IMPORTANCE, threshold=0.6)
    with Image.open(tmp_path / "a" / "a_rotation.gif") as animation:
        assert animation.n_frames == len(frames)
        assert animation.size == frames.shape[2:0:-1]
        first = np.asarray(animation.convert("RGB"), dtype=float)
    assert np.abs(first - frames[0]).mean() < 4


def test_the_scan_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, reads = PictureSaver(tmp_path), []
    load = saver.load
    monkeypatch.setattr(saver, "load", lambda source: reads.append(source) or load(source))
    saver(engine_with(item(tmp_path / "a.nii.gz")))
    assert reads == [tmp_path / "a.nii.gz"]


def test_segmentation_may_be_left_out(tmp_path: Path) -> None:
    maps = item(tmp_path / "a.nii.gz")
    del maps["seg"]
    PictureSaver(tmp_path, count=1, segmentation_key=None)(engine_with(maps))
    np.testing.assert_array_equal(
        picture(tmp_path / "a" / "a_montage.png"), montage(SCAN, SPACING_MM, IMPORTANCE, count=1)
    )
    np.testing.assert_array_equal(picture(tmp_path / "a" / "a_mip.png"), mips(SCAN, SPACING_MM, IMPORTANCE))
    with pytest.raises(KeyError, match="'seg' must be in the engine's output"):
        PictureSaver(tmp_path / "other")(engine_with(maps))


@pytest.mark.parametrize("key", ["importance", "seg"])
def test_refuses_maps_off_the_grid_of_the_scan(tmp_path: Path, key: str) -> None:
    maps = item(tmp_path / "a.nii.gz")
    cut = maps | {key: maps[key][:, 1:]}
    with pytest.raises(
        ValueError, match=rf"'{key}' must lie on the grid of its scan a.nii.gz, of shape \(16, 14, 12\)"
    ):
        PictureSaver(tmp_path)(engine_with(cut))
    affine = maps[key].affine.numpy().copy()
    affine[0, 3] += 0.5
    moved = maps | {key: on_grid(maps[key][0].numpy(), affine, tmp_path / "a.nii.gz")}
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
    maps = {"importance": importance, "seg": (importance > 0).astype(np.uint8)}
    PictureSaver(tmp_path, pictures=["montage"], count=1)(
        engine_with({key: on_grid(array, map_affine, path) for key, array in maps.items()})
    )
    (image, spacing_mm), (shares, _), (labels, _) = (
        to_canonical(array, stored_affine) for array in (scan, *maps.values())
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


def test_a_second_scan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    saver = PictureSaver(tmp_path / "out", pictures=["montage"], count=1)
    saver(engine_with(item(tmp_path / "a" / "scan.nii.gz")))
    with pytest.raises(ValueError, match="case names must differ within a run, got 'scan'"):
        saver(engine_with(item(tmp_path / "b" / "scan.nii.gz")))


@pytest.mark.skipif(not DICOM.is_dir(), reason="needs ../shared/data, the DICOM series")
def test_a_dicom_series_is_read_from_its_folder(tmp_path: Path) -> None:
    scan = PictureSaver(tmp_path).load(DICOM)
    importance = np.linspace(0, 1, scan[0].numel(), dtype=np.float32).reshape(scan.shape[1:])
    maps = {"importance": on_grid(importance, scan.affine.numpy(), DICOM)}
    PictureSaver(tmp_path, segmentation_key=None)(engine_with(maps))
    names = sorted(path.name for path in (tmp_path / "dicom_series").iterdir())
    assert names == ["dicom_series_mip.png", "dicom_series_montage.png"]
