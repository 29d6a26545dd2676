"""Tubes are found whatever their direction, plates and balls are not, and labels come out whole."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import voxel_sizes

from unoise_monai.data import vessels as module
from unoise_monai.data.vessels import vessel_label, vesselness

SIZE = (48, 44, 40)
SPACING = (0.6, 0.6, 0.6)


def distances(axis: int, spacing: tuple[float, ...] = SPACING, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """From each voxel to the line along ``axis`` through the middle, in mm."""
    grid = np.indices(size) - (np.array(size)[:, None, None, None] - 1) // 2
    steps = [index * step for index, step in zip(grid, spacing, strict=True)]
    return np.sqrt(sum(step**2 for other, step in enumerate(steps) if other != axis))


def covered(signed_mm: np.ndarray, voxel_mm: float = 0.6) -> np.ndarray:
    """The share of each voxel inside a surface, to first order."""
    return np.clip(0.5 - signed_mm / voxel_mm, 0, 1)


def noisy(share: np.ndarray, tissue: float = 200.0, vessel: float = 600.0, noise: float = 15.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (tissue + (vessel - tissue) * share + noise * rng.standard_normal(share.shape)).astype(np.float32)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.logical_and(one, other).sum() / (one.sum() + other.sum())


def parts(label: np.ndarray) -> int:
    components = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(label), True)
    return int(SimpleITK.GetArrayFromImage(components).max())


def test_a_tube_answers_more_than_a_plate_and_a_ball() -> None:
    away = distances(0)
    along = np.abs(np.indices(SIZE)[0] - 23) * 0.6
    tube, ball = covered(away - 1.5), covered(np.hypot(away, along) - 1.5)
    plate = covered(along - 1.5)
    middle = (23, 21, 19)
    responses = {name: vesselness(share, SPACING)[middle] for name, share in (("t", tube), ("b", ball), ("p", plate))}
    assert responses["t"] > 0.6
    assert responses["b"] < 0.3 * responses["t"]
    assert responses["p"] < 0.05 * responses["t"]
    assert vesselness(1 - tube, SPACING)[middle] == 0, "a dark tube is no bright one"


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.6), (0.4, 0.6, 1.0)])
@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_tubes_of_one_calibre_answer_alike_in_every_direction(spacing: tuple[float, ...], radius: float) -> None:
    size = tuple(int(24 / step) for step in spacing)
    middle = tuple((side - 1) // 2 for side in size)
    answers = []
    for axis in range(3):
        share = np.clip(0.5 - (distances(axis, spacing, size) - radius) / max(spacing), 0, 1)
        answers.append(vesselness(share, spacing)[middle])
    assert min(answers) > 0.5
    assert max(answers) < 1.15 * min(answers)


def test_the_unit_of_intensity_does_not_matter() -> None:
    image = noisy(covered(distances(1) - 1.2))
    np.testing.assert_allclose(vesselness(image, SPACING), vesselness(3.5 * image + 1000, SPACING), atol=2e-4)
    np.testing.assert_array_equal(vessel_label(image, SPACING), vessel_label(4 * image, SPACING))


def test_the_response_turns_with_the_volume() -> None:
    image, spacing = noisy(covered(distances(2) - 1.2)), (0.5, 0.7, 0.9)
    turned = vesselness(np.ascontiguousarray(image.transpose(2, 0, 1)), (0.9, 0.5, 0.7))
    np.testing.assert_allclose(vesselness(image, spacing).transpose(2, 0, 1), turned, atol=1e-4)


@pytest.mark.parametrize("radius", [0.7, 1.2, 2.5])
@pytest.mark.parametrize("tissue", [200.0, 0.0])
def test_a_tube_in_noise_is_labelled_whole(radius: float, tissue: float) -> None:
    away = distances(0)
    image = noisy(covered(away - radius), tissue)
    if tissue == 0:
        image = np.where(image > 60, image, 0)
    label = vessel_label(image, SPACING)
    assert label.dtype == np.uint8
    assert dice(label > 0, away < radius) > 0.85
    assert parts(label) == 1


def test_a_bias_field_does_not_move_the_edge() -> None:
    away = distances(0)
    field = np.exp(np.linspace(-0.5, 0.5, SIZE[0]))[:, None, None]
    label = vessel_label(noisy(covered(away - 2)) * field, SPACING)
    volumes = (label > 0).sum(axis=(1, 2))
    expected = (away < 2)[0].sum()
    assert np.all(np.abs(volumes[6:-4] - expected) < 0.25 * expected)


def test_hysteresis_keeps_the_faint_end_of_a_vessel_and_nothing_as_faint_elsewhere() -> None:
    away = distances(0)
    faint = np.where(np.arange(SIZE[0]) < 24, 1.0, 0.35)[:, None, None]
    other = np.hypot(*(0.6 * (np.indices(SIZE)[axis] - 8) for axis in (1, 2)))
    image = noisy(np.maximum(covered(away - 1) * faint, 0.35 * covered(other - 1)), noise=4)
    label = vessel_label(image, SPACING) > 0
    assert (label & (away < 1))[26:44].sum() > 0.7 * (away < 1)[26:44].sum()
    assert not label[other < 2].any()


def test_islands_are_removed_by_their_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    def label_without(island_mm3: float) -> np.ndarray:
        monkeypatch.setattr(module, "ISLAND_MM3", island_mm3)
        return vessel_label(image, SPACING)

    away = distances(0)
    short = np.hypot(*(0.6 * (np.indices(SIZE)[axis] - 8) for axis in (1, 2)))
    short = np.maximum(short - 1.2, np.abs(np.indices(SIZE)[0] - 23) * 0.6 - 2)
    image = noisy(np.maximum(covered(away - 1.2), covered(short)))
    both = label_without(2)
    assert parts(both) == 2
    volume = 0.6**3 * np.bincount(both.ravel())[1]
    longer = label_without(30)
    assert parts(longer) == 1
    assert not longer[short < 0].any()
    assert not label_without(2 * volume).any()


def test_a_volume_without_a_tube_has_no_label() -> None:
    rim = np.zeros(SIZE, np.float32)
    rim[:, :, 20:] = 100
    assert not vessel_label(rim, SPACING).any()


def test_a_dark_hole_in_a_bright_volume_is_no_vessel() -> None:
    image = np.where(distances(0) < 1, 0, 200).astype(np.int16)
    assert not vesselness(image, SPACING).any()


def test_nearly_all_empty() -> None:
    size = (80, 80, 80)
    away = distances(0, size=size)
    image = np.where((away < 1) & (np.abs(np.indices(size)[0] - 39) < 20), 90, 0).astype(np.uint8)
    assert np.percentile(image, 99.9) == 0
    assert dice(vessel_label(image, SPACING) > 0, image > 0) > 0.85


@pytest.mark.parametrize(
    ("image", "options", "says"),
    [
        (np.ones((8, 8)), {}, r"image must be 3-D, got shape \(8, 8\)"),
        (np.ones((8, 8, 3)), {}, r"image must have at least 4 voxels a side, got shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 8)), {}, "image must hold more than one value, got 0.0 everywhere"),
        (np.full((8, 8, 8), np.nan), {}, "image must hold finite values only, got 512 NaN"),
        (np.indices((8, 8, 8))[0], {"spacing_mm": (1, 0, 1)}, "spacing_mm must be three positive"),
        (np.indices((8, 8, 8))[0], {"spacing_mm": (1, 1)}, "spacing_mm must be three positive"),
    ],
)
def test_refuses(image: np.ndarray, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        vessel_label(image, **{"spacing_mm": SPACING, **options})


def test_real_angiogram(shared: Callable[[str], Path]) -> None:
    path = shared("tof_mra/chris_MRA.nii.gz")
    volume = nib.load(path)
    image = np.asarray(volume.dataobj)
    # A part, for speed: the circle of Willis and the front.
    image = image[:, 90:200, 20:100]
    label = vessel_label(image, voxel_sizes(volume.affine).tolist()) > 0
    assert dice(label, image > 60) > 0.85
