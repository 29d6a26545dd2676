"""What all pictures share: the patient the right way round, what is refused, grey, colours, and PNG."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from PIL import Image

from unoise_monai.render import display_scale, save_animation, save_png, scale_map, to_canonical
from unoise_monai.render.canvas import (
    DISPLAY_PERCENTILE,
    EDGE_LETTERS,
    OPACITY,
    RANGE_SLACK,
    SAMPLE_SIZE,
    STYLES,
    bar_colours,
    blend,
    check_importance,
    check_picture,
    display_slice,
    figure_to_rgb,
    find_window,
    foreground_box,
    grey_levels,
    pixel_mm,
)

SPACING_MM = (0.7, 1.1, 2.5)
ROTATION = euler2mat(0.35, -0.25, 0.2)
AFFINE = from_matvec(ROTATION @ np.diag(SPACING_MM), [91.3, -120.7, 33.1])
VOLUME = np.random.default_rng(3).random((4, 5, 6))


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_every_storage_order_gives_the_same_volume(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    orientation = np.column_stack([axes, flips])
    stored = nib.apply_orientation(VOLUME, orientation)
    affine = AFFINE @ nib.orientations.inv_ornt_aff(orientation, VOLUME.shape)
    volume, spacing_mm = to_canonical(stored, affine)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_allclose(spacing_mm, SPACING_MM)


@pytest.mark.parametrize("axis", range(3))
def test_letters_say_what_lies_at_each_edge(axis: int) -> None:
    """A volume whose voxels are named by the letters of the patient's sides that they touch."""
    sides = np.zeros((3, 3, 3), dtype=object)
    sides[:] = ""
    for dimension, (low, high) in enumerate(("LR", "PA", "IS")):
        np.moveaxis(sides, dimension, 0)[0] += low
        np.moveaxis(sides, dimension, 0)[2] += high
    picture = display_slice(sides, axis, 1)
    edges = {"top": picture[0, 1], "bottom": picture[2, 1], "left": picture[1, 0], "right": picture[1, 2]}
    assert edges == EDGE_LETTERS[axis]


@pytest.mark.parametrize("axis", range(3))
def test_slices_of_a_flipped_view_copy_no_volume(axis: int) -> None:
    volume = VOLUME.transpose(2, 0, 1)[::-1, :, ::-1]
    shown = display_slice(volume, axis, 2)
    assert np.shares_memory(shown, VOLUME)
    np.testing.assert_array_equal(shown, np.take(volume, 2, axis)[::-1, ::-1].T)


def test_foreground_box_holds_all_that_is_above_zero() -> None:
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[2, 3, 4], mask[5, 1, 8] = 1, 7
    assert foreground_box(mask) == ((2, 6), (1, 4), (4, 9))
    assert foreground_box(mask.astype(bool)) == ((2, 6), (1, 4), (4, 9))
    assert foreground_box(np.zeros_like(mask)) is None


@pytest.mark.parametrize("axis", range(3))
def test_pixel_sizes_are_rows_then_columns(axis: int) -> None:
    rows, columns = display_slice(VOLUME, axis, 0).shape
    kept = [index for index in range(3) if index != axis]
    assert [columns, rows] == [VOLUME.shape[index] for index in kept]
    assert pixel_mm(SPACING_MM, axis)[::-1] == tuple(SPACING_MM[index] for index in kept)


def test_refuses_what_has_no_geometry() -> None:
    with pytest.raises(ValueError, match=r"array must be 3-D, got shape \(4, 5\)"):
        to_canonical(VOLUME[..., 0], AFFINE)
    with pytest.raises(ValueError, match=r"affine must be 4x4, got shape \(3, 4\)"):
        to_canonical(VOLUME, AFFINE[:3])
    parallel = AFFINE.copy()
    parallel[:, 0] = parallel[:, 1]
    for affine in (parallel, AFFINE * [0, 1, 1, 1], AFFINE * np.nan):
        with pytest.raises(ValueError, match="affine must be finite and not singular"):
            to_canonical(VOLUME, affine)


class Watched(np.ndarray):
    """Counts how often its extremes are asked for."""

    passes = 0

    def min(self, *arguments: Any, **options: Any) -> Any:
        self.passes += 1
        return np.asarray(self).min(*arguments, **options)

    def max(self, *arguments: Any, **options: Any) -> Any:
        self.passes += 1
        return np.asarray(self).max(*arguments, **options)


def with_voxel(value: float) -> np.ndarray:
    volume = VOLUME.copy()
    volume[1, 2, 3] = value
    return volume


def test_each_volume_is_looked_at_once() -> None:
    image, importance, segmentation = (VOLUME.copy().view(Watched) for _ in range(3))
    check_picture(SPACING_MM, 0, image, importance, segmentation)
    assert [volume.passes for volume in (image, importance, segmentation)] == [2, 2, 2]
    labels = (VOLUME > 0.5).view(Watched)
    check_picture(SPACING_MM, 0, image, segmentation=labels)
    assert labels.passes == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": -1}, "axis must be one of 0, 1, 2, got -1"),
        ({"axis": 3}, "axis must be one of 0, 1, 2, got 3"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm must be three finite numbers above 0"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm must be three finite numbers above 0"),
        ({"window": (1, 0)}, "window must be"),
        ({"style": "jet"}, "style must be one of 'colour', 'red', got 'jet'"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
        ({"image": VOLUME[:0]}, r"image must be 3-D and not empty, got shape \(0, 5, 6\)"),
        ({"image": VOLUME[0]}, r"image must be 3-D and not empty, got shape \(5, 6\)"),
        ({"image": VOLUME * 0}, "image must hold more than one value, got 0.0 in every voxel"),
        ({"image": np.full((2, 2, 2), 7, np.int16)}, "image must hold more than one value, got 7 in every voxel"),
        ({"importance": VOLUME[1:]}, r"importance must be of the image's shape \(4, 5, 6\), got \(3, 5, 6\)"),
        ({"segmentation": VOLUME[1:] > 0.5}, r"segmentation must be of the image's shape \(4, 5, 6\), got \(3, 5, 6\)"),
        ({"importance": VOLUME * 2}, r"importance must lie in \[0, 1\], got values from"),
        ({"importance": with_voxel(-0.01)}, r"importance must lie in \[0, 1\], got values from -0.01"),
    ],
)
def test_refuses_what_cannot_be_drawn(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_picture(**{"spacing_mm": SPACING_MM, "axis": 0, "image": VOLUME, **changes})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["image", "importance", "segmentation"])
def test_refuses_values_that_are_not_finite(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold finite values only, got NaN or infinity"):
        check_picture(SPACING_MM, 0, **{"image": VOLUME, name: with_voxel(bad)})


def test_importance_may_be_bool_and_the_rest_absent() -> None:
    check_picture(SPACING_MM, 2, VOLUME, importance=VOLUME > 0.5, window=(0, 1), style="red", threshold=0.5)


@pytest.mark.parametrize("outside", [-1.0, 1.0])
def test_importance_may_leave_the_unit_range_by_what_resampling_does(outside: float) -> None:
    """By a thousandth; a map in percent, or one that runs to 1.01, is none of 0 to 1."""
    assert RANGE_SLACK == 1e-3
    end = max(outside, 0.0)
    inside, beyond = (with_voxel(end + part * outside * RANGE_SLACK) for part in (0.9, 1.1))
    check_picture(SPACING_MM, 0, VOLUME, importance=inside)
    assert check_importance(inside)[1, 2, 3] == end
    for check in (check_importance, lambda bad: check_picture(SPACING_MM, 0, VOLUME, importance=bad)):
        with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\], got values from"):
            check(beyond)
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
        check_importance(VOLUME * np.nan)


def test_window_turns_its_ends_black_and_white() -> None:
    grey = grey_levels(np.array([-1000.0, -160, 40, 240, 3000]), (-160, 240))
    assert grey.tolist() == [0, 0, 0.5, 1, 1]


def test_default_window_is_the_percentiles_which_leave_outliers_out() -> None:
    image = np.random.default_rng(0).normal(0, 1, (9, 10, 11))
    image[0, 0, 0] = 1e6
    assert find_window(image) == tuple(np.percentile(image, (1, 99)))
    assert (grey_levels(np.full((3, 3), 7.0)) == 0).all()


def test_window_of_an_angiogram_is_that_of_its_vessels() -> None:
    """1 % of the voxels are vessels from 50 to 250; percentiles of all voxels would turn nearly all of them white."""
    image = np.zeros(100_000)
    image[:1000] = np.linspace(50, 250, 1000)
    assert find_window(image) == (0, pytest.approx(248, abs=1))
    few = np.zeros(1000)
    few[:2] = (50, 200)
    assert grey_levels(few)[:3] == pytest.approx([0.25, 1, 0], abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_bright_voxels_that_the_sample_misses_are_seen(scale: float) -> None:
    """Of 160 voxels a side every second is looked at, and the vessel is one voxel thin."""
    image = np.zeros((160, 160, 160), dtype=np.float32)
    assert image.size > 2 * SAMPLE_SIZE
    image[81, 81] = np.linspace(0.5, 1, 160, dtype=np.float32) * scale
    assert find_window(image) == (0, pytest.approx(scale))
    assert grey_levels(image)[81, 81, [0, -1]] == pytest.approx([0.5, 1])


def test_window_of_a_large_image_is_nearly_that_of_all_its_voxels() -> None:
    image = np.random.default_rng(0).normal(0, 1, (140, 130, 120)).astype(np.float32)
    assert image.size > 2 * SAMPLE_SIZE
    assert find_window(image) == pytest.approx(tuple(np.percentile(image, (1, 99))), abs=0.02)


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0), (0.0, 1.0, 2.0)])
def test_refuses_a_bad_window(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="window must be"):
        grey_levels(np.zeros(3), window)


def test_colour_is_grey_below_the_threshold_and_coloured_above() -> None:
    rgb = blend(np.full((1, 3), 0.3), np.array([[0.0, 0.1, 1.0]]), threshold=0.1)
    np.testing.assert_allclose(rgb[0, :2], 0.3)
    top = np.array(mpl.colormaps["inferno"](1.0)[:3])
    np.testing.assert_allclose(rgb[0, 2], (1 - OPACITY) * 0.3 + OPACITY * top)


def test_red_goes_from_the_grey_to_pure_red() -> None:
    grey = np.array([[0.0, 0.4, 1.0]])
    np.testing.assert_array_equal(blend(grey, np.zeros((1, 3)), style="red"), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(blend(grey, np.ones((1, 3)), style="red"), np.tile([1.0, 0, 0], (1, 3, 1)))
    half = blend(grey, np.full((1, 3), 0.5), style="red")
    np.testing.assert_allclose(half[0], [[0.5, 0, 0], [0.7, 0.2, 0.2], [1, 0.5, 0.5]])


def test_without_importance_the_grey_stays() -> None:
    grey = np.random.default_rng(0).random((4, 5))
    np.testing.assert_array_equal(blend(grey, None), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("style", STYLES)
def test_what_resampling_carried_out_of_range_counts_as_its_end(style: str) -> None:
    grey = np.full((1, 2), 0.3)
    beyond, ends = (blend(grey, np.array([values]), style=style) for values in ((-5e-4, 1 + 5e-4), (0, 1)))
    np.testing.assert_array_equal(beyond, ends)


@pytest.mark.parametrize("style", STYLES)
def test_bar_shows_what_the_overlay_does_over_mid_grey(style: str) -> None:
    bar = bar_colours(0.3, style)
    for value in (0.0, 0.25, 0.5, 1.0):
        drawn = blend(np.full((1, 1), 0.5), np.full((1, 1), value), 0.3, style)[0, 0]
        np.testing.assert_allclose(bar(value)[:3], drawn, atol=0.02)


def test_scaled_map_runs_from_0_to_1() -> None:
    values = np.array([[-3.0, 1.0], [5.0, 3.0]])
    scaled = scale_map(values)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, [[0, 0.5], [1, 0.75]])
    np.testing.assert_array_equal(scale_map(values, (0, 4)), [[0, 0.25], [1, 0.75]])
    np.testing.assert_array_equal(scale_map(values.astype(np.int16)), scaled)
    np.testing.assert_array_equal(scale_map(np.zeros(2), (-1, 1)), [0.5, 0.5])


def test_display_scale_runs_from_0_to_a_high_percentile() -> None:
    values = np.arange(-1000.0, 9001.0)
    shown = display_scale(values)
    assert shown.dtype == np.float32
    assert shown[:1001].max() == 0
    assert shown[-1] == 1
    for percentile, found in ((DISPLAY_PERCENTILE, shown), (50, display_scale(values, 50))):
        assert found[2000] == pytest.approx(1000 / np.percentile(values, percentile))
    assert display_scale(np.array([-3.0, -2.0, -1.0])).tolist() == pytest.approx([0, 0.5, 1], abs=0.01)
    assert display_scale(np.zeros(4)).tolist() == [0, 0, 0, 0]
    # One voxel that is not 0 is shown, though no percentile reaches it.
    assert display_scale((np.arange(10000) == 7).astype(float)).max() == 1


def test_refuses_maps_that_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match=r"map must hold more than one value .* got 2\.0 everywhere"):
        scale_map(np.full((2, 2), 2.0))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="map must hold finite values only"):
            scale_map(np.array([0.0, bad]))
    for limits in ((1, 1), (2, 1), (0, np.inf), (0, 1, 2)):
        with pytest.raises(ValueError, match="limits must be"):
            scale_map(np.array([0.0, 1.0]), limits)


def test_refuses_unknown_styles_and_thresholds() -> None:
    grey = np.zeros((1, 1))
    with pytest.raises(ValueError, match="style must be one of 'colour', 'red', got 'jet'"):
        blend(grey, grey, style="jet")
    with pytest.raises(ValueError, match="threshold must be at least 0 and below 1, got 1"):
        blend(grey, grey, threshold=1)


def test_file_holds_the_array(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    save_png(rgb, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), rgb)
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("save", "shape"), [(save_png, (2, 2, 3)), (save_animation, (2, 2, 2, 3))], ids=["save_png", "save_animation"]
)
def test_failure_leaves_no_file(save: Any, shape: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(np.zeros(shape, dtype=np.uint8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8)])
def test_refuses_other_arrays(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rgb must be uint8 of shape \(H, W, 3\), got"):
        save_png(bad, tmp_path / "a.png")


def test_figure_of_the_size_asked_for() -> None:
    rgb = figure_to_rgb(Figure(figsize=(1.2, 0.8), dpi=100, facecolor=(1, 0, 0)))
    assert rgb.shape == (80, 120, 3)
    assert (rgb == [255, 0, 0]).all()
