"""Every check lets good input through and names the thing, the rule and the value of bad input."""

import math
import re

import pytest
import torch

from unoise_monai.checks import check_choice, check_finite, check_fraction, check_sigma_range

inf, nan = math.inf, math.nan


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
def test_sigma_range(low: float, high: float, says: str) -> None:
    for good in ((0, 1), (0.0, 1e-6), (1.0, 5.0)):
        check_sigma_range(*good)
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        check_sigma_range(low, high)


def test_finite() -> None:
    for good in (torch.tensor([-1e38, 0.0, 1e38]), torch.tensor([1, 2]), torch.zeros(0)):
        check_finite(good, "image")
    image = torch.zeros(2, 4)
    image[0, 0], image[1, 1], image[1, 2] = nan, inf, -inf
    with pytest.raises(ValueError, match=r"^image must hold finite values only, got 3 NaN or infinite of 8$"):
        check_finite(image, "image")


def test_choice() -> None:
    check_choice("order", "b", ("a", "b"))
    check_choice("depth", 2, (2, 3))
    with pytest.raises(ValueError, match=r"^order must be one of 'a', 'b', got 'c'$"):
        check_choice("order", "c", ("a", "b"))


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, nan, inf])
def test_fraction(value: float) -> None:
    for good in (1e-9, 0.5, 1, 1.0):
        check_fraction("keep", good)
    with pytest.raises(ValueError, match=f"^keep must be above 0 and at most 1, got {value}$"):
        check_fraction("keep", value)
