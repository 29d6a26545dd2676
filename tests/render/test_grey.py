"""Grey levels: the window asked for, or one that suits the image."""

import numpy as np
import pytest

from unoise_monai.render.canvas import SAMPLE_SIZE, find_window, grey_levels


def test_window_turns_its_ends_black_and_white() -> None:
    grey = grey_levels(np.array([-1000.0, -160, 40, 240, 3000]), (-160, 240))
    assert grey.tolist() == [0, 0, 0.5, 1, 1]


def test_default_window_is_the_percentiles() -> None:
    image = np.random.default_rng(0).normal(0, 1, (9, 10, 11))
    assert find_window(image) == tuple(np.percentile(image, (1, 99)))


def test_default_window_leaves_outliers_out() -> None:
    image = np.append(np.linspace(0, 1, 1000), 1e6)
    assert grey_levels(image)[500] == pytest.approx(0.5, abs=0.02)


def test_window_of_an_angiogram_is_that_of_its_vessels() -> None:
    """1 % of the voxels are vessels from 50 to 250; percentiles of all voxels would turn nearly all of them white."""
    image = np.zeros(100_000)
    image[:1000] = np.linspace(50, 250, 1000)
    assert find_window(image) == (0, pytest.approx(248, abs=1))


def test_a_few_bright_voxels_on_nothing_are_told_apart() -> None:
    image = np.zeros(1000)
    image[:2] = (50, 200)
    assert grey_levels(image)[:3] == pytest.approx([0.25, 1, 0], abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_bright_voxels_that_the_sample_misses_are_seen(scale: float) -> None:
    """Of 160 voxels a side every second is looked at, and the vessel is one voxel thin."""
    image = np.zeros((160, 160, 160), dtype=np.float32)
    assert image.size > 2 * SAMPLE_SIZE
    image[81, 81] = np.linspace(0.5, 1, 160, dtype=np.float32) * scale
    assert find_window(image) == (0, pytest.approx(scale))
    assert grey_levels(image)[81, 81, [0, -1]] == pytest.approx([0.5, 1])


def test_constant_image_is_black() -> None:
    assert (grey_levels(np.full((3, 3), 7.0)) == 0).all()


def test_window_of_a_large_image_is_nearly_that_of_all_its_voxels() -> None:
    image = np.random.default_rng(0).normal(0, 1, (140, 130, 120)).astype(np.float32)
    assert image.size > 2 * SAMPLE_SIZE
    assert find_window(image) == pytest.approx(tuple(np.percentile(image, (1, 99))), abs=0.02)


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0), (0.0, 1.0, 2.0)])
def test_refuses_a_bad_window(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="window must be"):
        grey_levels(np.zeros(3), window)
