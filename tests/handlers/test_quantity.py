"""Every quantity against its formula, voxel by voxel."""

import math
from itertools import product

import numpy as np
import pytest

from unoise_monai.handlers.savers import QUANTITIES, map_quantity

rng = np.random.default_rng(7)
# Few values, so that the ranks tie, and both ends.
IMPORTANCE = rng.choice([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0], size=(4, 3, 5)).astype(np.float32)


def naive(name: str, p: float, values: list[float]) -> float:
    if name == "importance":
        return p
    if name == "tolerance":
        return 1 - p
    if name == "sigma":
        return 0.5 + (1 - p) * (3.0 - 0.5)
    if name == "logit":
        clamped = min(max(p, 1e-7), 1 - 1e-7)
        return max(0.0, math.log(clamped / (1 - clamped)))
    below = sum(other < p for other in values)
    equal = sum(other == p for other in values)
    return 100 * (below + equal / 2) / len(values)


@pytest.mark.parametrize("name", QUANTITIES)
def test_equals_the_formula(name: str) -> None:
    result = map_quantity(IMPORTANCE, name, 0.5, 3.0)
    values = [float(value) for value in IMPORTANCE.ravel()]
    assert result.dtype == np.float32
    assert result.shape == IMPORTANCE.shape
    for index in product(*map(range, IMPORTANCE.shape)):
        assert result[index] == pytest.approx(naive(name, float(IMPORTANCE[index]), values), rel=1e-5, abs=1e-6)


def test_logit_undoes_the_sigmoid_where_positive() -> None:
    logit = rng.normal(0, 3, (5, 5, 5))
    result = map_quantity(1 / (1 + np.exp(-logit)), "logit")
    np.testing.assert_allclose(result, np.maximum(logit, 0), atol=1e-5)


def test_percentile_of_a_constant_map_is_the_middle() -> None:
    np.testing.assert_array_equal(map_quantity(np.full((3, 3, 3), 0.2), "percentile"), 50)


def test_leaves_the_input_alone_and_clips_resampling_errors() -> None:
    importance = np.array([[[-5e-4, 1 + 5e-4]]], dtype=np.float32)
    before = importance.copy()
    np.testing.assert_array_equal(map_quantity(importance), [[[0, 1]]])
    np.testing.assert_array_equal(importance, before)


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"quantity must be one of 'importance', .*, got 'noise'"):
        map_quantity(IMPORTANCE, "noise")
    with pytest.raises(ValueError, match=r"sigma_max must be greater than sigma_min, got 1.0 and 5.0"):
        map_quantity(IMPORTANCE, "sigma", 5.0, 1.0)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
            map_quantity(np.full((2, 2, 2), bad))
