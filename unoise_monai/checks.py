"""Checks that refuse bad input before work starts, each naming the thing, the rule and the value."""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def check_sigma_range(sigma_min: float, sigma_max: float) -> None:
    """Refuse noise scales that are not ``0 <= sigma_min < sigma_max < inf`` (units of normalised intensity).

    Raises:
        ValueError: when a bound is negative or not finite, or ``sigma_max`` is not above ``sigma_min``.
    """
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    if sigma_max <= sigma_min:
        raise ValueError(f"sigma_max must be greater than sigma_min, got {sigma_max} and {sigma_min}")


def check_finite(values: Tensor | NDArray[Any], name: str) -> None:
    """Refuse NaN and infinite values with a ValueError that counts them."""
    finite = torch.isfinite(torch.as_tensor(values))
    if bad := int((~finite).sum()):
        raise ValueError(f"{name} must hold finite values only, got {bad} NaN or infinite of {finite.numel()}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse with a ValueError a value that is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Refuse with a ValueError a share outside (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
