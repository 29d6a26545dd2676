"""Bootstrap intervals against a loop over the draws, and against what statistics knows of them."""

import itertools
import math

import numpy as np
import pytest
import torch

from unoise_monai.metrics import bootstrap
from unoise_monai.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean, resampled_sums


def values(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.7, 0.2, count)


def naive(cases: list[list[float]], level: float, draws: int, seed: int) -> tuple[float, float]:
    """Draw whole patients, put their cases into one list, and take its mean."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        drawn = [value for unit in rng.integers(len(cases), size=len(cases)) for value in cases[unit]]
        means.append(sum(drawn) / len(drawn))
    return float(np.quantile(means, (1 - level) / 2)), float(np.quantile(means, 1 - (1 - level) / 2))


@pytest.mark.parametrize(("level", "seed"), [(0.95, 0), (0.5, 3)])
def test_equals_a_loop_over_the_draws(level: float, seed: int) -> None:
    cases = values(13)
    interval = bootstrap_mean(cases, level, 300, seed)
    assert (interval.low, interval.high) == pytest.approx(naive([[v] for v in cases], level, 300, seed))
    assert (interval.mean, interval.count, interval.missing) == (pytest.approx(cases.mean()), 13, 0)


@pytest.mark.parametrize("names", [["b", "a", "b", "c", "c", "b", "d"], [(1, 2), 7, (1, 2), None, None, (1, 2), 1.5]])
def test_whole_patients_are_drawn(names: list) -> None:
    """Of unequal numbers of cases: a mean of the patients' means would differ."""
    cases = values(7)
    units = [[v for v, name in zip(cases, names, strict=True) if name == unit] for unit in dict.fromkeys(names)]
    interval = bootstrap_mean(cases, draws=300, groups=names)
    assert (interval.low, interval.high) == pytest.approx(naive(units, 0.95, 300, 0))
    assert (interval.mean, interval.count) == (pytest.approx(cases.mean()), 7)


def test_repeated_scans_of_a_patient_make_nothing_surer() -> None:
    cases = values(20)
    once = bootstrap_mean(cases)
    groups = np.repeat(np.arange(20), 5)
    assert bootstrap_mean(np.repeat(cases, 5), groups=groups) == Interval(
        pytest.approx(once.mean), pytest.approx(once.low), pytest.approx(once.high), 100
    )
    alone = bootstrap_mean(np.repeat(cases, 5))
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_two_cases_have_the_exact_distribution() -> None:
    """Means of two draws from {0, 1} are 0, 1/2, 1/2, 1."""
    assert bootstrap_mean([0, 1], level=0.95) == Interval(0.5, 0, 1, 2)
    assert bootstrap_mean([0, 1], level=0.4) == Interval(0.5, 0.5, 0.5, 2)
    assert bootstrap_mean([0, 1], level=1) == Interval(0.5, 0, 1, 2)


def test_width_is_that_of_the_normal_theory() -> None:
    cases = values(400)
    interval = bootstrap_mean(cases, draws=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * cases.std() / 20, rel=0.05)


def test_covers_the_truth_as_often_as_it_says() -> None:
    intervals = [bootstrap_mean(values(40, seed), draws=400) for seed in range(300)]
    covered = sum(interval.low <= 0.7 <= interval.high for interval in intervals) / 300
    assert 0.89 < covered < 0.98


def test_nan_is_left_out_and_counted() -> None:
    cases = values(9)
    holes = np.insert(cases, [0, 4, 9], math.nan)
    full = bootstrap_mean(cases)
    assert bootstrap_mean(holes) == Interval(full.mean, full.low, full.high, 9, 3)
    groups = ["gone", *"abcd", "a", *"efghi", "gone"]
    grouped = bootstrap_mean(holes, groups=groups)
    assert (grouped.low, grouped.high, grouped.missing) == (full.low, full.high, 3)


@pytest.mark.parametrize(
    ("cases", "groups", "mean"),
    [([0.3], None, 0.3), ([0.3, math.nan], None, 0.3), ([0.2, 0.4], ["a", "a"], 0.3), ([math.nan] * 2, None, math.nan)],
)
def test_one_case_says_nothing_of_the_spread(cases: list[float], groups: list[str] | None, mean: float) -> None:
    interval = bootstrap_mean(cases, groups=groups)
    assert interval.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.count == sum(not math.isnan(value) for value in cases)


def test_difference_draws_pairs() -> None:
    """Two methods that differ by the same amount on every case differ surely, however the cases differ."""
    first, second = values(15), values(15) - 0.1
    assert bootstrap_difference(first, second) == Interval(*[pytest.approx(0.1)] * 3, 15)
    other = values(15, seed=1)
    assert bootstrap_difference(first, other, 0.9, 500, 2) == bootstrap_mean(first - other, 0.9, 500, 2)
    second[3], first[5] = math.nan, math.nan
    assert bootstrap_difference(first, second).count == 13
    assert bootstrap_difference(first, second).missing == 2


def test_seed_decides_and_the_global_state_is_left_alone() -> None:
    cases = values(12)
    # The legacy state is the one that others may rely on.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap_mean(cases, seed=4) == bootstrap_mean(torch.from_numpy(cases), seed=4)
    assert bootstrap_mean(cases, seed=4) != bootstrap_mean(cases, seed=5)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_sums_of_all_draws_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    units = np.random.default_rng(0).random((11, 3))
    whole = resampled_sums(units, 50, 7)
    assert whole.shape == (50, 3)
    monkeypatch.setattr(bootstrap, "_BATCH", 40)
    np.testing.assert_allclose(resampled_sums(units, 50, 7), whole)
    possible = [sum(pair) for pair in itertools.product([1.0, 10.0], repeat=2)]
    assert set(resampled_sums(np.array([[1.0], [10.0]]), 60, 0)[:, 0]) == set(possible)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"values": []}, r"values must be one number a case, at least one, got an array of shape \(0,\)"),
        ({"values": [[1.0, 2.0]]}, r"values must be one number a case, at least one, got an array of shape \(1, 2\)"),
        ({"values": [1.0, math.inf]}, "values must be finite or NaN, got 1 infinite of 2"),
        ({"values": [1.0, 2.0], "groups": ["a"]}, "groups must be one for each of the 2 values, got 1"),
        ({"values": [1.0], "level": 0}, "level must be above 0 and at most 1, got 0"),
        ({"values": [1.0], "level": 95}, "level must be above 0 and at most 1, got 95"),
        ({"values": [1.0], "draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_refuses(words: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bootstrap_mean(**words)


def test_refuses_pairs_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"of the same cases, got the shapes \(2,\) and \(3,\)"):
        bootstrap_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="second must be finite or NaN, got 1 infinite of 2"):
        bootstrap_difference([0, 1], [math.inf, 2])
    with pytest.raises(ValueError, match="first must be finite or NaN"):  # their difference would pass as missing
        bootstrap_difference([math.inf, 1], [math.inf, 2])


def test_a_difference_draws_whole_groups() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=12), rng.normal(size=12)
    groups = list("aabbccddeeff")
    assert bootstrap_difference(first, second, groups=groups) == bootstrap_mean(first - second, groups=groups)
    assert bootstrap_difference(first, second, groups=groups) != bootstrap_difference(first, second)
