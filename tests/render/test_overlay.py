"""The overlay is upright, in proportion, the same for every storage order, and honest about what is important."""

from itertools import product

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest

from unoise_monai.render import overlay_slices, to_canonical
from unoise_monai.render.overlay import OPACITY, blend, spread_slices
from unoise_monai.render.panels import BAR_WIDTH, GAP, TITLE_HEIGHT

SHAPE = (24, 20, 16)
SPACING_MM = (1.0, 1.5, 3.0)


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[14:20, 4:9, 5:12] = 1
    segmentation[10:14, 4:9, 5:12] = 2
    return rng.normal(0, 1, SHAPE), rng.random(SHAPE), segmentation


def panel(rgb: np.ndarray) -> np.ndarray:
    """The picture of a sheet of one slice, without title and bar."""
    return rgb[GAP + TITLE_HEIGHT : -GAP, GAP : -GAP - BAR_WIDTH]


@pytest.mark.parametrize("axis", range(3))
def test_marked_corner_lies_where_the_convention_puts_it(axis: int) -> None:
    """The patient's right, front and head are at the top left in every view: R-A, R-S and A-S corners."""
    marked = np.zeros(SHAPE)
    corner = [slice(-5, None)] * 3
    marked[tuple(corner)] = 1
    rgb = panel(overlay_slices(np.zeros(SHAPE), marked, (1.0, 1.0, 1.0), axis, count=1))
    red = rgb[..., 0].astype(int) - rgb[..., 2] > 40
    rows, columns = np.nonzero(red)
    assert rows.size > 0
    assert rows.mean() < 0.3 * rgb.shape[0]
    assert columns.mean() < 0.3 * rgb.shape[1]


@pytest.mark.parametrize("axis", range(3))
def test_a_cube_in_mm_is_a_square(axis: int) -> None:
    """12 mm a side in voxels of 1 x 1.5 x 3 mm."""
    importance = np.zeros(SHAPE)
    importance[6:18, 6:14, 6:10] = 1
    rgb = panel(overlay_slices(np.zeros(SHAPE), importance, SPACING_MM, axis, count=1))
    red = rgb[..., 0].astype(int) - rgb[..., 2]
    rows, columns = np.nonzero(red > red.max() / 2)  # halfway, so that smoothing moves no edge
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    extent_mm = [SHAPE[i] * SPACING_MM[i] for i in range(3) if i != axis]
    pixel = 360 / max(extent_mm)
    assert height / width == pytest.approx(1, abs=0.03)
    assert width == pytest.approx(12 * pixel, rel=0.03)


def test_the_same_picture_however_the_file_is_stored(volumes: tuple[np.ndarray, ...]) -> None:
    affine = np.diag([*SPACING_MM, 1])
    affine[:3, 3] = [-30, 20, 7]
    expected = overlay_slices(volumes[0], volumes[1], SPACING_MM, 2, 4, volumes[2])
    for axes, flips in product([(1, 2, 0), (2, 1, 0)], [(1, -1, -1), (-1, 1, 1)]):
        orientation = np.column_stack([axes, flips])
        stored_affine = affine @ nib.orientations.inv_ornt_aff(orientation, SHAPE)
        stored = [to_canonical(nib.apply_orientation(v, orientation), stored_affine) for v in volumes]
        (image, spacing_mm), (importance, _), (segmentation, _) = stored
        rgb = overlay_slices(image, importance, spacing_mm, 2, 4, segmentation)
        np.testing.assert_array_equal(rgb, expected)


def test_blend_is_grey_below_the_threshold_and_coloured_above() -> None:
    grey = np.array([[0.3, 0.3, 0.3]])
    rgb = blend(grey, np.array([[0.0, 0.1, 1.0]]), threshold=0.1)
    np.testing.assert_allclose(rgb[0, :2], 0.3)
    top = np.array(mpl.colormaps["inferno"](1.0)[:3])
    np.testing.assert_allclose(rgb[0, 2], (1 - OPACITY) * 0.3 + OPACITY * top)


def test_slices_spread_over_the_region() -> None:
    region = np.zeros((4, 4, 100), dtype=bool)
    region[1, 1, 20:80] = True
    assert spread_slices(region, 2, 6) == [25, 35, 45, 55, 65, 75]
    assert spread_slices(region, 2, 1) == [50]
    assert spread_slices(region, 0, 1) == [1]
    assert spread_slices(region, 0, 9) == [0, 1, 2, 3]
    assert spread_slices(np.zeros_like(region), 2, 2) == [25, 75]
    region[:] = False
    region[0, 0, 99] = True
    assert spread_slices(region, 2, 3) == [97, 98, 99]


def test_without_a_segmentation_the_important_region_is_shown() -> None:
    importance = np.full(SHAPE, 0.05)
    importance[..., 3] = 0.9
    shown = panel(overlay_slices(np.zeros(SHAPE), importance, SPACING_MM, 2, 1))
    assert shown[150, 150].max() > 150


def test_segmentation_is_outlined(volumes: tuple[np.ndarray, ...]) -> None:
    image, _, segmentation = volumes
    zero = np.zeros(SHAPE)
    plain = overlay_slices(image, zero, SPACING_MM, 2, 1, np.zeros_like(segmentation))
    outlined = overlay_slices(image, zero, SPACING_MM, 2, 1, segmentation)
    assert plain.shape == outlined.shape

    def cyan(rgb: np.ndarray) -> int:
        return int((panel(rgb)[..., 2].astype(int) - panel(rgb)[..., 0] > 100).sum())

    assert cyan(plain) == 0
    assert cyan(outlined) > 100


def test_constant_image_and_no_importance_are_drawn() -> None:
    rgb = overlay_slices(np.full(SHAPE, 40.0), np.zeros(SHAPE), SPACING_MM, segmentation=np.zeros(SHAPE))
    assert rgb.dtype == np.uint8
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3


def test_leaves_its_input_alone(volumes: tuple[np.ndarray, ...]) -> None:
    before = [volume.copy() for volume in volumes]
    overlay_slices(volumes[0], volumes[1], SPACING_MM, 0, 2, volumes[2])
    for volume, copy in zip(volumes, before, strict=True):
        np.testing.assert_array_equal(volume, copy)


def test_refuses_bad_input(volumes: tuple[np.ndarray, ...]) -> None:
    image, importance, segmentation = volumes
    with pytest.raises(ValueError, match="axis must be one of 0, 1, 2, got -1"):
        overlay_slices(image, importance, SPACING_MM, -1)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        overlay_slices(image, importance, SPACING_MM, count=0)
    with pytest.raises(ValueError, match="importance must be of the image's shape"):
        overlay_slices(image, importance[1:], SPACING_MM)
    with pytest.raises(ValueError, match="segmentation must be of the image's shape"):
        overlay_slices(image, importance, SPACING_MM, segmentation=segmentation[None])
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
        overlay_slices(image, importance + 1, SPACING_MM)
    with pytest.raises(ValueError, match="window must be"):
        overlay_slices(image, importance, SPACING_MM, window=(1, 0))
    with pytest.raises(ValueError, match="threshold must be at least 0 and below 1, got 1"):
        overlay_slices(image, importance, SPACING_MM, threshold=1)
