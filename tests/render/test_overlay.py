"""Overlays: grey where nothing is important, the style's colour where all is, and a bar that says which."""

import matplotlib as mpl
import numpy as np
import pytest

from unoise_monai.render import display_scale, scale_map
from unoise_monai.render.canvas import DISPLAY_PERCENTILE, OPACITY, STYLES, bar_colours, blend


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
