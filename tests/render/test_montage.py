"""The montage is upright, in proportion, the same for every storage order, and shows the slices asked for."""

import numpy as np
import pytest

from unoise_monai.render import montage
from unoise_monai.render.canvas import (
    EDGE_LETTERS,
    bar_colours,
    blend,
    display_slice,
    find_window,
    grey_levels,
    pixel_mm,
)
from unoise_monai.render.panels import BAR_WIDTH, GAP, SMALLEST_PANEL, TITLE_HEIGHT, Panel, draw_panels
from unoise_monai.render.slices import foreground, spread, widen

SHAPE = (24, 20, 16)
SPACING_MM = (1.0, 1.5, 3.0)
GREY = np.random.default_rng(0).uniform(0, 1, SHAPE)


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[14:20, 4:9, 5:12] = 1
    segmentation[10:14, 4:9, 5:12] = 2
    return rng.normal(0, 1, SHAPE), rng.random(SHAPE), segmentation


def panel(rgb: np.ndarray, bar: int = BAR_WIDTH) -> np.ndarray:
    """The picture of a sheet of one slice, without title and bar."""
    return rgb[GAP + TITLE_HEIGHT : -GAP, GAP : rgb.shape[1] - GAP - bar]


def redness(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0].astype(int) - rgb[..., 2]


@pytest.mark.parametrize("axis", range(3))
def test_marked_corner_lies_where_the_convention_puts_it(axis: int) -> None:
    """The patient's right, front and head are at the top left in every view: R-A, R-S and A-S corners."""
    marked = np.zeros(SHAPE)
    marked[-5:, -5:, -5:] = 1
    rgb = panel(montage(GREY, (1.0, 1.0, 1.0), marked, axis=axis, count=1))
    rows, columns = np.nonzero(redness(rgb) > 40)
    assert rows.size > 0
    assert rows.mean() < 0.3 * rgb.shape[0]
    assert columns.mean() < 0.3 * rgb.shape[1]


@pytest.mark.parametrize("axis", range(3))
def test_a_cube_in_mm_is_a_square(axis: int) -> None:
    """12 mm a side in voxels of 1 x 1.5 x 3 mm."""
    importance = np.zeros(SHAPE)
    importance[6:18, 6:14, 6:10] = 1
    rgb = panel(montage(GREY, SPACING_MM, importance, axis=axis, count=1, window=(2, 3)))
    red = redness(rgb)
    rows, columns = np.nonzero(red > red.max() / 2)  # halfway, so that smoothing moves no edge
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    extent_mm = [SHAPE[i] * SPACING_MM[i] for i in range(3) if i != axis]
    assert height / width == pytest.approx(1, abs=0.03)
    assert width == pytest.approx(12 * 360 / max(extent_mm), rel=0.03)


@pytest.mark.parametrize("threshold", [0.1, 0.6])
@pytest.mark.parametrize("axis", range(3))
def test_the_sheet_is_its_slices(axis: int, threshold: float, volumes: tuple[np.ndarray, ...]) -> None:
    """Titles, outlines, the window of the whole volume and the threshold, against a sheet that is put together here."""
    image, importance, segmentation = volumes
    image = image + np.linspace(0, 5, 24)[:, None, None]  # so that no slice's own window is that of the volume
    panels = []
    for index in (5, 9):
        grey = grey_levels(display_slice(image, axis, index), find_window(image))
        labels = display_slice(segmentation, axis, index)
        rgb = blend(grey, display_slice(importance, axis, index), threshold)
        outlines = [labels == value for value in (1, 2) if (labels == value).any()]
        panels.append(Panel(rgb, f"slice {index + 1} of {SHAPE[axis]}", outlines))
    bar, label = bar_colours(threshold), "importance, 0 to 1"
    expected = draw_panels(panels, pixel_mm(SPACING_MM, axis), EDGE_LETTERS[axis], bar, label, SMALLEST_PANEL)
    options = {"axis": axis, "count": 2, "slices": (3, 11), "threshold": threshold}
    np.testing.assert_array_equal(montage(image, SPACING_MM, importance, segmentation, **options), expected)


def test_slices_spread_over_an_extent() -> None:
    assert spread(20, 80, 6) == [25, 35, 45, 55, 65, 75]
    assert spread(20, 80, 1) == [50]
    assert spread(0, 4, 9) == [0, 1, 2, 3]
    assert spread(5, 8, 3) == [5, 6, 7]


def test_a_short_extent_is_widened_inside_the_volume() -> None:
    assert widen((20, 80), 6, 100) == (20, 80)
    assert widen((99, 100), 3, 100) == (97, 100)
    assert widen((50, 51), 3, 100) == (49, 52)
    assert widen((1, 2), 9, 4) == (0, 4)


def test_foreground_is_of_the_segmentation_then_the_importance_then_the_image() -> None:
    image, importance, segmentation = np.zeros(SHAPE), np.full(SHAPE, 0.3), np.zeros(SHAPE, dtype=np.uint8)
    image[2:5, 3:6, 4:7] = 100
    image[0, 0, 0] = 5  # noise in the air
    importance[7:9, 8:10, 9:11] = 0.8
    segmentation[10:12, 11:13, 12:14] = 2
    everything, window = tuple((0, size) for size in SHAPE), (0.0, 100.0)
    assert foreground(image, importance, segmentation, window) == ((10, 12), (11, 13), (12, 14))
    assert foreground(image, importance, segmentation * 0, window) == ((7, 9), (8, 10), (9, 11))
    assert foreground(image, None, None, window) == ((2, 5), (3, 6), (4, 7))
    assert foreground(image, importance * 0, None, window) == everything
    assert foreground(image, None, None, (1e3, 1e4)) == everything


@pytest.mark.parametrize("axis", range(3))
def test_range_takes_the_slices_asked_for(axis: int) -> None:
    """Each slice has its own grey, so the montage tells which ones it shows."""
    levels = np.linspace(0, 1, SHAPE[axis])
    image = np.broadcast_to(np.moveaxis(levels[:, None, None], 0, axis), SHAPE)
    for first, last, count, shown in [(3, 3, 4, [3]), (2, 9, 2, [4, 8]), (0, SHAPE[axis] - 1, 1, [SHAPE[axis] // 2])]:
        rgb = montage(image, (1.0, 1.0, 1.0), axis=axis, count=count, slices=(first, last), window=(0, 1))
        middle = rgb[rgb.shape[0] // 2]
        found = [np.abs(middle - 255 * levels[index]).max(axis=1) < 1 for index in shown]
        assert all(pixels.mean() > 0.5 / len(shown) for pixels in found)


@pytest.mark.parametrize("axis", range(3))
def test_crop_leaves_the_foreground_and_its_margin(axis: int) -> None:
    """A crop is the picture of the volume cut to the foreground and as many whole voxels as the margin needs."""
    segmentation = np.zeros(SHAPE, dtype=np.uint8)
    segmentation[8:12, 1:9, 6:10] = 1
    box = [slice(5, 15), slice(0, 11), slice(5, 11)]  # 3 mm: 3, 2 and 1 voxels; the front ends at the volume's edge
    box[axis] = slice(None)
    cropped = montage(GREY, SPACING_MM, None, segmentation, axis=axis, count=2, crop_mm=3, window=(0, 1))
    cut = montage(GREY[tuple(box)], SPACING_MM, None, segmentation[tuple(box)], axis=axis, count=2, window=(0, 1))
    np.testing.assert_array_equal(cropped, cut)


def test_segmentation_is_outlined(volumes: tuple[np.ndarray, ...]) -> None:
    image, _, segmentation = volumes
    sheets = [
        montage(image, SPACING_MM, None, labels, count=1) for labels in (np.zeros_like(segmentation), segmentation)
    ]
    assert sheets[0].shape == sheets[1].shape
    plain, outlined = (int((-redness(panel(sheet, 0)) > 100).sum()) for sheet in sheets)
    assert plain == 0
    assert outlined > 100


def test_bar_belongs_to_importance_and_says_the_style(volumes: tuple[np.ndarray, ...]) -> None:
    image, importance, _ = volumes
    plain = montage(image, SPACING_MM, count=1)
    sheets = [montage(image, SPACING_MM, importance, count=1, style=style) for style in ("colour", "red")]
    other = montage(image, SPACING_MM, importance, count=1, label="attribution, 0 to 1")
    assert plain.shape[1] + BAR_WIDTH == sheets[0].shape[1]
    red = [(sheet[:, -BAR_WIDTH:] == [255, 0, 0]).all(axis=2).any() for sheet in sheets]
    assert red == [False, True]
    assert (other != sheets[0])[:, -BAR_WIDTH:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"crop_mm": -1.0}, "crop_mm must be a finite number of at least 0, got -1.0"),
        ({"slices": (3, 16)}, r"slices must be \(first, last\), from 0, within the 16 of axis 2, got \(3, 16\)"),
        ({"slices": (4, 3)}, "slices must be"),
        ({"slices": (-1, 3)}, "slices must be"),
    ],
)
def test_refuses_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        montage(GREY, SPACING_MM, **changes)
