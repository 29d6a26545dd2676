"""Every check lets good input through and names the thing, the rule and the value of bad input."""

import math
import re

import pytest
import torch

from unoise_monai.checks import check_choice, check_finite, check_fraction, check_sigma_range

inf, nan = math.inf, math.nan


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0, 1e-6), (1.0, 5.0)])
def test_sigma_range_accepts(low: float, high: float) -> None:
    check_sigma_range(low, high)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (5.0, 1.0, "sigma_max must be greater than sigma_min, got 1.0 and 5.0"),
        (2.0, 2.0, "sigma_max must be greater than sigma_min, got 2.0 and 2.0"),
        (-0.5, 1.0, "sigma_min must be a finite number of at least 0, got -0.5"),
        (nan, 1.0, "sigma_min must be a finite number of at least 0, got nan"),
        (0.0, inf, "sigma_max must be a finite number of at least 0, got inf"),
        (0.0, nan, "sigma_max must be a finite number of at least 0, got nan"),
    ],
)
def test_sigma_range_refuses(low: float, high: float, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        check_sigma_range(low, high)


def test_finite_accepts_numbers_and_integers() -> None:
    check_finite(torch.tensor([-1e38, 0.0, 1e38]), "image")
    check_finite(torch.tensor([1, 2]), "label")
    check_finite(torch.zeros(0), "nothing")


def test_finite_counts_what_is_not() -> None:
    image = torch.zeros(2, 4)
    image[0, 0], image[1, 1], image[1, 2] = nan, inf, -inf
    with pytest.raises(ValueError, match=r"^image must hold finite values only, got 3 NaN or infinite of 8$"):
        check_finite(image, "image")


def test_choice() -> None:
    check_choice("order", "b", ("a", "b"))
    check_choice("depth", 2, (2, 3))
    with pytest.raises(ValueError, match=r"^order must be one of 'a', 'b', got 'c'$"):
        check_choice("order", "c", ("a", "b"))


@pytest.mark.parametrize("value", [1e-9, 0.5, 1, 1.0])
def test_fraction_accepts(value: float) -> None:
    check_fraction("keep", value)


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, nan, inf])
def test_fraction_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=f"^keep must be above 0 and at most 1, got {value}$"):
        check_fraction("keep", value)
