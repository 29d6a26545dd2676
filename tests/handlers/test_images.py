"""The picture beside the maps shows the scan of the file, however that file is stored."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from unoise_monai.handlers.images import OverlaySaver
from unoise_monai.render import overlay_slices

SHAPE = (16, 14, 12)
SPACING_MM = (1.0, 1.5, 2.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
rng = np.random.default_rng(9)
SCAN = rng.normal(0, 100, SHAPE).astype(np.float32)
IMPORTANCE = rng.random(SHAPE).astype(np.float32)
SEGMENTATION = np.zeros(SHAPE, dtype=np.float32)
SEGMENTATION[5:10, 4:9, 3:8] = 1


def item(path: Path, orientation: np.ndarray | None = None) -> dict[str, object]:
    """Store the scan in ``path`` in another order of axes, and the maps on its grid."""
    turn = np.array([[0, 1], [1, 1], [2, 1]]) if orientation is None else orientation
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(nib.apply_orientation(SCAN, turn), affine), path)
    maps = {"importance": IMPORTANCE, "seg": SEGMENTATION}
    return {
        key: MetaTensor(
            torch.as_tensor(nib.apply_orientation(array, turn).copy())[None],
            affine=torch.as_tensor(affine),
            meta={"filename_or_obj": str(path)},
        )
        for key, array in maps.items()
    }


def engine_with(*items: object) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(output=list(items)))


def test_engine_writes_the_picture_of_each_case(tmp_path: Path) -> None:
    items = [item(tmp_path / "a.nii.gz"), item(tmp_path / "b.nii.gz", np.array([[2, -1], [0, 1], [1, -1]]))]
    engine = Engine(lambda _, batch: [batch])
    OverlaySaver(tmp_path / "out", axis=1, count=2, window=(-100, 100)).attach(engine)
    engine.run(items)
    expected = overlay_slices(SCAN, IMPORTANCE, SPACING_MM, 1, 2, SEGMENTATION, (-100, 100))
    for name in "ab":
        folder = tmp_path / "out" / name
        assert [path.name for path in folder.iterdir()] == [f"{name}_overlay.png"]
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}_overlay.png")), expected)


def test_segmentation_may_be_left_out(tmp_path: Path) -> None:
    maps = item(tmp_path / "a.nii.gz")
    del maps["seg"]
    OverlaySaver(tmp_path, count=1, segmentation_key=None)(engine_with(maps))
    expected = overlay_slices(SCAN, IMPORTANCE, SPACING_MM, 2, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "a_overlay.png")), expected)
    with pytest.raises(KeyError, match="'seg' must be in the engine's output"):
        OverlaySaver(tmp_path / "other")(engine_with(maps))


def test_refuses_maps_off_the_grid_of_the_scan(tmp_path: Path) -> None:
    maps = item(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="importance must be of the image's shape"):
        OverlaySaver(tmp_path)(engine_with({key: value[:, 1:] for key, value in maps.items()}))  # type: ignore[index]
    assert not list(tmp_path.rglob("*.png"))


def test_refuses_bad_options_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="axis must be one of 0, 1, 2, got 3"):
        OverlaySaver(tmp_path, axis=3)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        OverlaySaver(tmp_path, count=0)
    with pytest.raises(ValueError, match="window must be"):
        OverlaySaver(tmp_path, window=(240, -160))


def test_a_second_scan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    saver = OverlaySaver(tmp_path / "out", count=1)
    saver(engine_with(item(tmp_path / "a" / "scan.nii.gz")))
    with pytest.raises(ValueError, match="case names must differ within a run, got 'scan'"):
        saver(engine_with(item(tmp_path / "b" / "scan.nii.gz")))
