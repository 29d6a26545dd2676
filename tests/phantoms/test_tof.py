import numpy as np
import pytest

from unoise_monai.phantoms.head import RANGES, SATURATED, Look, inflow, random_look, rician, strip


def look(**changes: float) -> Look:
    return Look(**dict.fromkeys(RANGES, 0.0) | {"blood": 600.0, "contrast": 3.0, "ceiling": 2.0} | changes)


def test_looks_differ_within_their_ranges() -> None:
    draws = [random_look(np.random.default_rng(seed)) for seed in range(100)]
    for name, (low, high) in RANGES.items():
        values = [getattr(draw, name) for draw in draws]
        assert low <= min(values) < low + (high - low) / 10
        assert high - (high - low) / 10 < max(values) <= high


def test_blood_fades_from_1_to_its_steady_state() -> None:
    transit = np.linspace(0, 2000, 50)
    brightness = inflow(transit, 100.0)
    assert brightness[0] == 1
    assert (np.diff(brightness) < 0).all()
    assert brightness[-1] == pytest.approx(SATURATED, abs=1e-6)
    assert inflow(np.array([100.0]), 100.0)[0] == pytest.approx(SATURATED + (1 - SATURATED) / np.e)


@pytest.mark.parametrize("grain", [0.0, 0.5, 1.0])
def test_noise_is_rician(grain: float) -> None:
    rng = np.random.default_rng(0)
    # Without signal the magnitude is Rayleigh, mean sigma * sqrt(pi / 2); with much signal it is Gaussian.
    nothing = rician(np.zeros((64, 64, 64), np.float32), 10.0, grain, rng)
    assert nothing.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.03)
    assert nothing.min() >= 0
    strong = rician(np.full((64, 64, 64), 1000, np.float32), 10.0, grain, rng)
    assert strong.std() == pytest.approx(10, rel=0.05)
    assert strong.mean() == pytest.approx(1000, rel=0.002)
    neighbours = np.corrcoef(strong[1:].ravel(), strong[:-1].ravel())[0, 1]
    # Weights 1/4, 1/2, 1/4 correlate neighbours by 2/3.
    assert neighbours == pytest.approx(grain * 2 / 3, abs=0.03)


def test_no_noise_leaves_the_image() -> None:
    image = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    np.testing.assert_array_equal(rician(image, 0.0, 0.5, np.random.default_rng(0)), image)


def test_a_threshold_alone_keeps_all_above_it() -> None:
    image = np.linspace(0, 900, 1000, dtype=np.float32).reshape(10, 10, 10)
    nothing = np.zeros_like(image)
    got = strip(image, nothing, nothing, look(threshold=1.0, margin=-0.5))
    # The brain has 600 / 3 = 200; without a margin the threshold is 0.8 of that higher.
    np.testing.assert_array_equal(got, np.where(image > 360, image, 0))
    got = strip(image, nothing, nothing, look(threshold=1.0, margin=-0.5, subtracted=0.5, ceiling=1.0))
    np.testing.assert_allclose(got, np.where(image > 360, np.minimum(image, 600) - 180, 0))


def test_a_margin_keeps_what_is_near_vessels_and_what_was_forgotten() -> None:
    image = np.full((11, 11, 11), 500, np.float32)
    share, patches = np.zeros((2, 11, 11, 11), np.float32)
    share[5, 5, 5] = 0.2
    patches[0, 0, 0] = 3.0
    expected = np.zeros(image.shape, bool)
    expected[5, 5, 5] = expected[0, 0, 0] = True
    got = strip(image, share, patches, look(threshold=1.0, margin=0.0, remains=0.05))
    np.testing.assert_array_equal(got > 0, expected)

    # Each step adds a voxel on all sides but at the corners.
    distance = np.abs(np.indices(image.shape) - 5)
    steps = np.maximum(distance.max(axis=0), np.ceil(distance.sum(axis=0) / 2))
    for margin in (1, 2):
        got = strip(image, share, patches, look(threshold=1.0, margin=float(margin), remains=0.05))
        np.testing.assert_array_equal((got > 0)[1:], (steps <= margin)[1:])
