"""The voxels shown are the most important ones of the volume, no more and no fewer."""

import tracemalloc

import numpy as np
import pytest

from unoise_monai.render import decile_pictures
from unoise_monai.render import slices as deciles
from unoise_monai.render.panels import GAP, TITLE_HEIGHT
from unoise_monai.render.slices import PAPER_THRESHOLDS, most_important

SHAPE = (20, 20, 10)
SPACING_MM = (1.0, 1.0, 2.0)
SIDE = 280
WHITE = np.ones(SHAPE)
WHITE[0, 0, 0] = 0.999  # an image of one value is refused
RAMP = np.broadcast_to(np.linspace(0, 1, 20)[:, None, None], SHAPE)


def places(rgb: np.ndarray, columns: int, count: int) -> list[np.ndarray]:
    """The pictures of a sheet of square panels."""
    tops = [GAP + TITLE_HEIGHT + number // columns * (SIDE + TITLE_HEIGHT + GAP) for number in range(count)]
    lefts = [GAP + number % columns * (SIDE + GAP) for number in range(count)]
    return [rgb[top : top + SIDE, left : left + SIDE] for top, left in zip(tops, lefts, strict=True)]


def white_share(picture: np.ndarray) -> float:
    middle = picture[30:-30, 30:-30]  # inside the letters
    return float((middle > 127).mean())


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_takes_the_share_of_the_sorted_voxels(share: float) -> None:
    importance = np.random.default_rng(2).permutation(1000).reshape(10, 10, 10) / 1000
    kept = most_important(importance, share)
    assert kept.sum() == round(share * 1000)
    assert kept.all() or importance[kept].min() > importance[~kept].max()


def test_ties_are_all_taken() -> None:
    importance = np.array([[[0.0, 0.5, 0.5, 0.5, 1.0]]])
    assert most_important(importance, 0.4).tolist() == [[[False, True, True, True, True]]]
    assert most_important(np.zeros((2, 2, 2)), 0.1).all()


def test_panels_show_growing_shares_and_then_all() -> None:
    """Importance is a ramp from left to right, so each panel is white up to its share of the width."""
    rgb = decile_pictures(WHITE, RAMP, SPACING_MM, index=4, window=(0, 1))
    pictures = places(rgb, 5, 10)
    for number, picture in enumerate(pictures):
        # The patient's right, the end of X, is on the picture's left.
        width = (picture[90] > 127).all(axis=1)
        assert width[: round(SIDE * (number + 1) / 10) - 8].all()
        assert not width[round(SIDE * (number + 1) / 10) + 8 :].any()


def test_thresholds_of_the_paper() -> None:
    rgb = decile_pictures(WHITE, RAMP, SPACING_MM, window=(0, 1), thresholds=PAPER_THRESHOLDS)
    for threshold, picture in zip(PAPER_THRESHOLDS, places(rgb, 3, 5), strict=False):
        visible = (1 - RAMP[:, 0, 0] <= threshold).mean()
        assert (picture[90] > 127).all(axis=1).mean() == pytest.approx(visible, abs=0.04)


def test_shares_are_of_the_volume_not_of_the_slice() -> None:
    importance = np.zeros(SHAPE)
    importance[..., :5] = np.random.default_rng(0).uniform(0.5, 1, (20, 20, 5))
    first, last = (
        places(decile_pictures(WHITE, importance, SPACING_MM, 2, index, (0.5,), None, (0, 1)), 2, 2) for index in (0, 9)
    )
    assert [white_share(picture) for picture in (first[0], *last)] == [1, 0, 1]


@pytest.mark.parametrize("axis", range(3))
def test_the_most_important_slice_is_the_default(axis: int) -> None:
    importance = np.random.default_rng(4).random(SHAPE) / 10
    np.moveaxis(importance, axis, 0)[7] += 0.5
    image = np.random.default_rng(5).random(SHAPE)
    default = decile_pictures(image, importance, SPACING_MM, axis, shares=(0.5,))
    np.testing.assert_array_equal(default, decile_pictures(image, importance, SPACING_MM, axis, 7, (0.5,)))


@pytest.mark.parametrize("axis", range(3))
def test_projection_shows_the_brightest_of_the_visible_voxels(axis: int) -> None:
    """A vessel across the volume, important up to its middle, before and behind tissue that is never important."""
    image = np.random.default_rng(6).uniform(0, 0.1, SHAPE)
    importance = np.zeros(SHAPE)
    vessel = [9, 9, 4]
    along = (axis + 1) % 3
    vessel[along] = slice(None)  # type: ignore[call-overload]
    image[tuple(vessel)] = 1
    vessel[along] = slice(SHAPE[along] // 2)  # type: ignore[call-overload]
    importance[tuple(vessel)] = 1
    share = SHAPE[along] // 2 / image.size
    rgb = decile_pictures(image, importance, SPACING_MM, axis, shares=(share,), window=(0, 1), mip=True)
    shown = [(picture > 127).all(axis=2).sum() for picture in places(rgb, 2, 2)]
    assert shown[0] / shown[1] == pytest.approx(0.5, abs=0.06)


def test_projection_hides_the_same_voxels_under_every_window() -> None:
    importance = np.zeros(SHAPE)
    importance[:10] = 1
    rgb = decile_pictures(WHITE, importance, SPACING_MM, shares=(0.5,), window=(-1, 1), mip=True)
    assert (places(rgb, 2, 2)[0][90] > 127).all(axis=1).mean() == pytest.approx(0.5, abs=0.04)


def test_projection_of_intensities_below_zero() -> None:
    rgb = decile_pictures(WHITE - 3, np.ones(SHAPE), SPACING_MM, shares=(0.5,), window=(-3, -1), mip=True)
    for picture in places(rgb, 2, 2):
        assert (np.abs(picture[30:-30, 30:-30] - 127.5) < 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", PAPER_THRESHOLDS)
def test_a_voxel_on_the_threshold_is_visible(dtype: type, threshold: float) -> None:
    """The front half of a slice has just the tolerance asked for, the back half a little more."""
    importance = np.full(SHAPE, 1 - threshold, dtype=dtype)
    importance[:, :10] -= dtype(1e-4)
    levels = np.array([threshold])  # as a share of a linspace is: its type would win over float32
    rgb = decile_pictures(WHITE, importance, SPACING_MM, thresholds=levels, window=(0, 1))
    shown = (places(rgb, 2, 2)[0][:, 60] > 127).all(axis=1)
    assert shown[20:130].all()
    assert not shown[150:-20].any()


@pytest.mark.parametrize("shown", [{"shares": np.linspace(0.1, 0.9, 9)}, {"thresholds": np.linspace(0, 1, 9)}])
@pytest.mark.parametrize("mip", [False, True])
def test_memory_is_bounded_whatever_the_number_of_panels(
    shown: dict[str, np.ndarray], mip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciles, "draw_views", lambda *given, **options: np.zeros((1, 1, 3), dtype=np.uint8))
    image, importance = np.random.default_rng(7).random((2, 96, 96, 96), dtype=np.float32)
    tracemalloc.start()
    decile_pictures(image, importance, SPACING_MM, mip=mip, **shown)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The clipped importance, a copy that is partly sorted, a mask; then pictures of one slice each.
    assert peak < 2.25 * image.nbytes + 10 * 96**2 * 3 * 8 + 2e6


def test_no_importance_at_all_is_drawn() -> None:
    assert white_share(places(decile_pictures(WHITE, np.zeros(SHAPE), SPACING_MM, window=(0, 1)), 5, 10)[0]) == 1


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 10"):
        decile_pictures(WHITE, WHITE, SPACING_MM, shares=(10,))
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\], got 1.5"):
        decile_pictures(WHITE, WHITE, SPACING_MM, thresholds=(1.5,))
    with pytest.raises(ValueError, match="index must be at least 0 and below 10, got 10"):
        decile_pictures(WHITE, WHITE, SPACING_MM, index=10)
