"""Lambda moves towards the share of the Dice that shall survive, and stays there."""

import math
import random
import re

import pytest

from unoise_monai.losses import DualNoiseRatio


@pytest.mark.parametrize(
    ("of", "noised", "clean", "change"),
    [
        # Of the room that there is at full survival: (0.89 - 0.8) / 0.2; below, (0.7 - 0.8) / 0.2.
        ("dice", 0.89, 1.0, 0.45),
        ("loss", 1 / 0.89, 1.0, 0.45),
        ("dice", 0.7, 1.0, -0.5),
        ("loss", 1 / 0.7, 1.0, -0.5),
        ("dice", 0.64, 0.8, 0.0),
        ("dice", 0.0, 0.9, -1.0),
        ("dice", 0.9, 0.9, 1.0),
        ("dice", 0.95, 0.9, 1.0),
    ],
)
def test_one_step_grows_with_room_to_spare_and_shrinks_below(
    of: str, noised: float, clean: float, change: float
) -> None:
    ratio = DualNoiseRatio(keep=0.8, of=of, start=0.01, rate=0.3)
    assert math.log(ratio.update(noised, clean) / 0.01) == pytest.approx(0.3 * change, abs=1e-9)
    assert float(ratio) == ratio.update(math.nan, clean)


def test_survival_is_smoothed_from_the_first_batch_on() -> None:
    ratio = DualNoiseRatio(smoothing=0.75)
    shares, expected = (0.4, 0.8, 1.0), None
    for share in shares:
        expected = share if expected is None else 0.75 * expected + 0.25 * share
        ratio.update(share, 1.0)
        assert float(ratio.survival) == pytest.approx(expected)


def test_stays_in_bounds() -> None:
    ratio = DualNoiseRatio(start=0.01, rate=1.0, bounds=(1e-3, 0.1), smoothing=0)
    for _ in range(20):
        ratio.update(1.0, 1.0)
    assert float(ratio) == pytest.approx(0.1)
    for _ in range(20):
        ratio.update(0.0, 1.0)
    assert float(ratio) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("of", "noised", "clean"),
    [
        *(("dice", noised, clean) for noised, clean in [(0, 0), (0.3, 0), (math.nan, 0.5), (0.5, math.nan)]),
        *(("loss", noised, clean) for noised, clean in [(0, 0.3), (0.3, 0), (math.nan, 0.3), (0.3, math.nan)]),
        ("loss", 0.3, math.inf),
    ],
)
def test_batch_that_says_nothing_moves_nothing(of: str, noised: float, clean: float) -> None:
    ratio = DualNoiseRatio(of=of, start=0.01)
    ratio.update(0.7, 0.8)
    before = {name: float(value) for name, value in ratio.state_dict().items()}
    assert ratio.update(noised, clean) == float(ratio)
    assert {name: float(value) for name, value in ratio.state_dict().items()} == before


def test_continues_from_its_state() -> None:
    first, fresh = DualNoiseRatio(start=0.01), DualNoiseRatio(start=1.0)
    for share in (0.9, 0.5, 0.99):
        first.update(share, 1.0)
    fresh.load_state_dict(first.state_dict())
    assert float(fresh) == float(first)
    assert fresh.update(0.93, 1.0) == first.update(0.93, 1.0)
    untouched = DualNoiseRatio()
    untouched.load_state_dict(DualNoiseRatio(start=0.02).state_dict())
    assert math.isnan(float(untouched.survival))
    assert float(untouched) == pytest.approx(0.02)


@pytest.mark.parametrize("start", [1e-4, 1.0])
@pytest.mark.parametrize(("of", "keep"), [("dice", 0.9), ("loss", 0.7)])
def test_converges_where_the_share_survives(start: float, of: str, keep: float) -> None:
    """The more lambda, the less survives: ``1 / (1 + c lambda)``, with batches that scatter around it."""
    c, draw = 20.0, random.Random(0)  # noqa: S311
    ratio = DualNoiseRatio(keep=keep, of=of, start=start, rate=0.05)
    reached = []
    for _ in range(1500):
        share = min(1.0, 1 / (1 + c * float(ratio)) * draw.uniform(0.95, 1.05))
        ratio.update(*((0.8 * share, 0.8) if of == "dice" else (0.3 / share, 0.3)))
        reached.append(float(ratio))
    wanted = (1 / keep - 1) / c
    assert sum(reached[-500:]) / 500 == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"keep": 0.0}, "keep must be above 0 and at most 1, got 0.0"),
        ({"keep": 1.0}, "keep must be below 1, or no noise at all is allowed, got 1.0"),
        ({"of": "iou"}, "of must be one of 'dice', 'loss', got 'iou'"),
        ({"start": 20.0}, "start must lie inside bounds, above 0, got 20.0 and (1e-06, 10.0)"),
        ({"start": 0.1, "bounds": (0.0, 1.0)}, "start must lie inside bounds, above 0, got 0.1 and (0.0, 1.0)"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1, got 1.0"),
        ({"smoothing": -0.1}, "smoothing must be at least 0 and below 1, got -0.1"),
        ({"rate": 0.0}, "rate must be a finite number above 0, got 0.0"),
        ({"rate": math.inf}, "rate must be a finite number above 0, got inf"),
    ],
)
def test_refuses_bad_arguments(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        DualNoiseRatio(**changed)
