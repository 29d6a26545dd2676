"""Projections on a sheet: three views at one scale, upright, the same for every storage order; slab after slab."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unoise_monai.render import mips, slab_mips, to_canonical
from unoise_monai.render.canvas import EDGE_LETTERS, bar_colours, blend, find_window, grey_levels, pixel_mm
from unoise_monai.render.mip import SLAB_PANEL, project, project_at_brightest
from unoise_monai.render.panels import BAR_WIDTH, GAP, LARGEST_PANEL, TITLE_HEIGHT, Panel, draw_panels

SHAPE = (24, 20, 16)
SPACING_MM = (1.0, 1.5, 2.0)
ANGIOGRAM = Path(__file__).parents[2].parent / "shared" / "data" / "tof_mra" / "chris_MRA.nii.gz"
rng = np.random.default_rng(8)
NOISE = rng.uniform(0, 0.1, SHAPE)
SHARES = rng.random(SHAPE, dtype=np.float32)


def views(rgb: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...], bar: int = 0) -> list[np.ndarray]:
    """The axial, the coronal and the sagittal picture of a sheet."""
    x, y, z = (size * mm for size, mm in zip(shape, spacing_mm, strict=True))
    scale, left, pictures = LARGEST_PANEL / max(x, y, z), GAP, []
    for height, width in ((y, x), (z, x), (z, y)):
        rows, columns = round(height * scale), round(width * scale)
        pictures.append(rgb[GAP + TITLE_HEIGHT : GAP + TITLE_HEIGHT + rows, left : left + columns])
        left += columns + GAP
    assert rgb.shape[1] == left + bar
    return pictures


def place(picture: np.ndarray) -> tuple[float, float]:
    """Where the marker is, as shares of the picture's height and width; letters are white, too, but small."""
    rows, columns = np.nonzero((picture > 200).all(axis=2))
    return float(np.median(rows)) / picture.shape[0], float(np.median(columns)) / picture.shape[1]


def test_a_marker_is_found_at_the_patients_right_front_and_head() -> None:
    """Right is on the left of axial and coronal pictures, the front on top or on the left, the head on top."""
    for axis, where in enumerate(([(0.5, 0), (0.5, 0), None], [(0, 0.5), None, (0.5, 0)], [None, (0, 0.5), (0, 0.5)])):
        image = NOISE.copy()
        marker = [slice(size // 2 - 4, size // 2 + 4) for size in SHAPE]
        marker[axis] = slice(SHAPE[axis] - 4, SHAPE[axis])
        image[tuple(marker)] = 1
        pictures = views(mips(image, SPACING_MM, window=(0, 1)), SHAPE, SPACING_MM)
        for expected, picture in zip(where, pictures, strict=True):
            wanted = (0.5, 0.5) if expected is None else tuple(0.11 if at == 0 else at for at in expected)
            assert place(picture) == pytest.approx(wanted, abs=0.1)


def test_views_show_the_maximum_wherever_it_lies() -> None:
    """One bright voxel, never in the same plane as the middle of the volume."""
    image = NOISE.copy()
    image[2:6, 14:18, 1:5] = 1
    at = [(2 + 6) / 2 / 24, (14 + 18) / 2 / 20, (1 + 5) / 2 / 16]
    pictures = views(mips(image, SPACING_MM, window=(0, 1)), SHAPE, SPACING_MM)
    for picture, (row, column) in zip(pictures, ((1, 0), (2, 0), (2, 1)), strict=True):
        assert place(picture) == pytest.approx((1 - at[row], 1 - at[column]), abs=0.03)


def test_a_cube_in_mm_is_the_same_square_in_all_views() -> None:
    image = NOISE.copy()
    image[6:18, 6:14, 4:10] = 1  # 12 mm a side
    sides = []
    for picture in views(mips(image, SPACING_MM, window=(0, 1)), SHAPE, SPACING_MM):
        middle = (picture[25:-25, 25:-25] > 140).all(axis=2)  # inside the letters
        sides += [int(middle.any(axis=0).sum()), int(middle.any(axis=1).sum())]
    expected = 12 * LARGEST_PANEL / max(size * mm for size, mm in zip(SHAPE, SPACING_MM, strict=True))
    assert sides == pytest.approx([expected] * 6, rel=0.04)


def test_colour_is_that_of_the_voxel_seen_or_of_any_voxel_of_the_ray() -> None:
    """A bright vessel of no importance before tissue of much."""
    image, importance = NOISE.copy(), np.zeros(SHAPE)
    image[:, :, 12] = 1
    importance[:, :, 3] = 1
    options = {"style": "red", "window": (0, 1)}
    seen, hidden = (
        views(mips(image, SPACING_MM, importance, depth=depth, **options), SHAPE, SPACING_MM, BAR_WIDTH)[0]
        for depth in ("brightest", "any")
    )
    assert not (seen == [255, 0, 0]).all(axis=2).any()
    assert (hidden == [255, 0, 0]).all(axis=2).mean() > 0.9


def test_slab_shows_what_lies_in_it_alone() -> None:
    """Two plates; the slab is centred on the segmentation, or on the voxel asked for."""
    image, segmentation = NOISE.copy(), np.zeros(SHAPE, dtype=np.uint8)
    image[:, :, 12], image[:, :, 3] = 1, 0.5
    segmentation[10:14, 8:12, 3] = 1
    options = {"window": (0, 1), "slab_mm": 4.0}

    def axial(**arguments: object) -> float:
        sheet = mips(image, SPACING_MM, **options, **arguments)  # type: ignore[arg-type]
        return float(np.median(views(sheet, SHAPE, SPACING_MM)[0]))

    assert axial(segmentation=segmentation) == pytest.approx(127, abs=2)
    assert axial(centre=(12, 10, 12)) == 255
    assert axial() < 30
    assert float(np.median(views(mips(image, SPACING_MM, window=(0, 1)), SHAPE, SPACING_MM)[0])) == 255


@pytest.mark.parametrize(("falling", "ends"), [(False, [2, 5, 8, 11, 14, 15]), (True, [0, 3, 6, 9, 12, 15])])
def test_slabs_follow_each_other_without_a_gap(falling: bool, ends: list[int]) -> None:
    """Every slice has a grey of its own, so a slab's grey tells the brighter one of its ends; 6 mm are three slices."""
    levels = np.linspace(0.1, 1, 16)[:: -1 if falling else 1]
    image = np.broadcast_to(levels, SHAPE)
    rgb = slab_mips(image, SPACING_MM, 6.0, window=(0, 1))
    found = [at for at, level in enumerate(levels) if (np.abs(rgb - 255 * level) < 1).all(axis=2).mean() > 0.05]
    assert found == ends


def test_slabs_have_one_window_and_say_their_slices() -> None:
    image = NOISE.copy()
    image[:, :, 13:] += np.linspace(0, 3, 24)[:, None, None]
    parts = [slice(0, 6), slice(6, 12), slice(12, 16)]
    shown = [project(image[..., part], 2) for part in parts]
    window = find_window(np.stack(shown))
    titles = ["slices 1 to 6 of 16", "slices 7 to 12 of 16", "slices 13 to 16 of 16"]
    rgbs = [
        blend(grey_levels(pixels, window), project(SHARES[..., part], 2), 0.4, "red")
        for pixels, part in zip(shown, parts, strict=True)
    ]
    panels = [Panel(rgb, title) for rgb, title in zip(rgbs, titles, strict=True)]
    bar = bar_colours(0.4, "red")
    expected = draw_panels(panels, pixel_mm(SPACING_MM, 2), EDGE_LETTERS[2], bar, "share", SLAB_PANEL)
    options = {"style": "red", "threshold": 0.4, "depth": "any", "label": "share"}
    np.testing.assert_array_equal(slab_mips(image, SPACING_MM, 12.0, SHARES, **options), expected)


@pytest.mark.parametrize("axis", range(3))
def test_one_slab_as_thick_as_the_volume_is_its_projection(axis: int) -> None:
    image = project(NOISE, axis)
    grey = grey_levels(image, find_window(image))
    rgb = blend(grey, project_at_brightest(SHARES, NOISE, axis))
    panel = Panel(rgb, f"slices 1 to {SHAPE[axis]} of {SHAPE[axis]}", [], pixel_mm(SPACING_MM, axis))
    expected = draw_panels([panel], (1, 1), EDGE_LETTERS[axis], bar_colours(), "importance, 0 to 1", SLAB_PANEL)
    np.testing.assert_array_equal(slab_mips(NOISE, SPACING_MM, 1e3, SHARES, axis=axis), expected)


@pytest.mark.parametrize("threshold", [0.1, 0.6])
@pytest.mark.parametrize("slab_mm", [None, 5.0])
def test_the_sheet_is_its_three_projections(slab_mm: float | None, threshold: float) -> None:
    """Titles, outlines, one window for the three, and the threshold, against a sheet that is put together here.

    Along one axis all rays are dark, so that a window of one view is none of all.
    """
    image = np.random.default_rng(1).uniform(0, 0.2, SHAPE)
    image[:, :, 7] += np.linspace(0, 5, 24)[:, None]  # bright from the head, a line from the front and from the side
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:12, 3:9, 6:9], labels[15:20, 10:16, 7:10] = 1, 2
    parts = {0: slice(None), 1: slice(None), 2: slice(None)}
    titles = {2: "axial MIP", 1: "coronal MIP", 0: "sagittal MIP"}
    if slab_mm is not None:  # 2 slices of 2 mm, 3 of 1.5 mm and 5 of 1 mm around voxel (11.5, 9, 7.5)
        parts = {2: slice(7, 9), 1: slice(8, 11), 0: slice(10, 15)}
        titles = {2: "axial MIP, 4 mm", 1: "coronal MIP, 4.5 mm", 0: "sagittal MIP, 5 mm"}
    cut = {axis: (*(slice(None),) * axis, part) for axis, part in parts.items()}
    window = find_window(np.concatenate([project(image[cut[axis]], axis).ravel() for axis in (2, 1, 0)]))
    assert window != find_window(project(image[cut[2]], 2))
    panels = []
    for axis in (2, 1, 0):
        scan, shares, classes = image[cut[axis]], SHARES[cut[axis]], labels[cut[axis]]
        grey = grey_levels(project(scan, axis), window)
        rgb = blend(grey, project_at_brightest(shares, scan, axis), threshold)
        outlines = [project(classes == value, axis) for value in (1, 2)]
        panels.append(Panel(rgb, titles[axis], outlines, pixel_mm(SPACING_MM, axis), EDGE_LETTERS[axis]))
    bar = bar_colours(threshold)
    expected = draw_panels(panels, colour_map=bar, colour_label="importance, 0 to 1", longest=LARGEST_PANEL)
    sheet = mips(image, SPACING_MM, SHARES, labels, slab_mm, (11.5, 9, 7.5) if slab_mm else None, threshold=threshold)
    np.testing.assert_array_equal(sheet, expected)


def test_each_class_is_outlined_in_each_view() -> None:
    """Cyan pixels are there, lie around the shadow of the class, and go with it."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[6:18, 6:14, 4:10] = 2  # 12 mm a side, the middle of the volume but for Z
    plain, outlined = (
        views(mips(NOISE, SPACING_MM, None, segmentation), SHAPE, SPACING_MM)
        for segmentation in (np.zeros_like(labels), labels)
    )
    pixels_a_mm = LARGEST_PANEL / 32
    for without, picture in zip(plain, outlined, strict=True):
        cyan = (picture[..., 2].astype(int) - picture[..., 0]) > 100
        assert not ((without[..., 2].astype(int) - without[..., 0]) > 100).any()
        rows, columns = np.nonzero(cyan)
        assert np.ptp(rows) == pytest.approx(12 * pixels_a_mm, abs=4)
        assert np.ptp(columns) == pytest.approx(12 * pixels_a_mm, abs=4)
        # Corners are cut by half a voxel of the largest size.
        assert not cyan[rows.min() + 20 : rows.max() - 20, columns.min() + 20 : columns.max() - 20].any()


def test_refuses_bad_input() -> None:
    for changes, message in [
        ({"slab_mm": 0.0}, "slab_mm must be a finite number above 0, got 0.0"),
        ({"slab_mm": 5.0, "centre": (24, 0, 0)}, r"centre must be a voxel of the volume of shape \(24, 20, 16\)"),
        ({"slab_mm": 5.0, "centre": (1, 2)}, "centre must be a voxel"),
        ({"depth": "mean"}, "depth must be one of 'brightest', 'any', got 'mean'"),
    ]:
        with pytest.raises(ValueError, match=message):
            mips(**{"image": NOISE, "spacing_mm": SPACING_MM, **changes})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slab_mm must be a finite number above 0, got -1"):
        slab_mips(NOISE, SPACING_MM, -1)


@pytest.mark.skipif(not ANGIOGRAM.is_file(), reason="needs ../shared/data, the real TOF angiogram")
def test_the_circle_of_willis_is_upright() -> None:
    """The carotids enter from below, wider than the branches above; front of the head, the anterior arteries meet."""
    stored = nib.load(ANGIOGRAM)
    image, spacing_mm = to_canonical(np.asarray(stored.dataobj), stored.affine)
    _, coronal, sagittal = views(mips(image, spacing_mm), image.shape, spacing_mm)
    white = (coronal > 200).all(axis=2)
    assert white[-len(white) // 4 :].sum() > 1.5 * white[: len(white) // 4].sum()
    columns = (sagittal > 200).all(axis=2).sum(axis=0)
    assert columns[: columns.size // 2].sum() > 2 * columns[columns.size // 2 :].sum()
