"""The quantities that an importance map can be written as."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unoise_monai.checks import check_choice, check_sigma_range
from unoise_monai.render.checks import check_importance

QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "importance": "importance, 0 to 1",
        "tolerance": "noise tolerance, 0 to 1",
        "sigma": "tolerated noise, standard deviation in normalised intensity",
        "logit": "positive part of the importance's logit",
        "percentile": "percentile rank of the importance in the volume, 0 to 100",
    }
)
"""Name to what it is, with its unit."""

LOGIT_EPSILON = 1e-7
"""Importance is kept this far from 0 and 1 before its logit is taken."""


def map_quantity(
    importance: NDArray[Any], name: str = "importance", sigma_min: float = 1.0, sigma_max: float = 5.0
) -> NDArray[np.float32]:
    """Turn importance into the quantity asked for.

    With p the importance and B = 1 - p the tolerance of Koker et al., "U-Noise", 2021:

    - ``importance``: p.
    - ``tolerance``: B.
    - ``sigma``: ``sigma_min + B * (sigma_max - sigma_min)``, the noise that the voxel bears.
    - ``logit``: ``max(0, log(p / (1 - p)))``, the "positive values retrieved prior to the sigmoid layer" of the
      paper's Fig. 2, with p clamped to [1e-7, 1 - 1e-7].
    - ``percentile``: 100 times the share of voxels below, plus half the share of those equal; ties share their
      mean rank.

    Args:
        importance: values in [0, 1], of any shape.
        name: one of ``QUANTITIES``.
        sigma_min: noise scale at tolerance 0, in units of normalised intensity.
        sigma_max: noise scale at tolerance 1, in units of normalised intensity.

    Returns:
        The quantity, of the same shape.

    Raises:
        ValueError: when ``name`` is unknown.
        ValueError: when the noise scales are not ``0 <= sigma_min < sigma_max``.
        ValueError: when ``importance`` holds values outside [0, 1] by more than 1e-3, or NaN.
    """
    check_choice("quantity", name, tuple(QUANTITIES))
    check_sigma_range(sigma_min, sigma_max)
    p = check_importance(importance)
    if name == "tolerance":
        p = 1 - p
    elif name == "sigma":
        p = sigma_min + (1 - p) * (sigma_max - sigma_min)
    elif name == "logit":
        p = p.clip(LOGIT_EPSILON, 1 - LOGIT_EPSILON)
        p = np.maximum(np.log(p / (1 - p)), 0)
    elif name == "percentile":
        p = _percentile_rank(p)
    return p.astype(np.float32)


def _percentile_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below_and_half = np.cumsum(counts) - counts / 2
    rank: NDArray[np.float64] = 100 * below_and_half[inverse.reshape(values.shape)] / values.size
    return rank
