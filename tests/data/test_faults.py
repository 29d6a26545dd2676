"""Affines without a place in space and intensities beyond arithmetic are told from good ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nibabel.affines import from_matvec

from unoise_monai.data.reading import LARGEST_INTENSITY, affine_fault, intensity_fault


def test_good_affines(affine: np.ndarray) -> None:
    sheared = affine @ from_matvec(np.array([[1, 0.8, 0], [0, 1, 0], [0, 0, 1.0]]))
    for each in (affine, sheared, from_matvec(np.diag([0.001, 1000, -1]), [1e6, 0, 0])):
        assert affine_fault(each) == ""


@pytest.mark.parametrize(
    ("axes", "origin", "says"),
    [
        (np.diag([1, np.nan, 1]), 0, "must have a finite affine"),
        (np.diag([1, 1, 1]), np.inf, "must have a finite affine"),
        (np.diag([1, 0, 1]), 0, "must have voxel sizes from 0.001 to 1000 mm, got 1, 0, 1"),
        (np.diag([1, 1001, 1]), 0, "got 1, 1001, 1"),
        (np.ones((3, 3)), 0, "got 0: it is singular or too sheared"),
        (np.array([[1, 11, 0], [0, 1, 0], [0, 0, 1]]), 0, "of at least 0.1, got 0.0905"),
        (np.diag([1, 1, 1]), -2e6, r"must lie within 1e\+06 mm of the origin, got 2e\+06 mm"),
    ],
)
def test_bad_affines(axes: np.ndarray, origin: float, says: str) -> None:
    assert re.search(says, affine_fault(from_matvec(axes.astype(float), [origin, 0, 0])))


def test_intensities() -> None:
    assert intensity_fault(-1024, 3000) == ""
    assert intensity_fault(7, 7) == "must not be constant, got 7 everywhere"
    assert intensity_fault(0, LARGEST_INTENSITY) == ""
    for low, high in ((0, 2e12), (-2e12, 0)):
        assert "must hold intensities up to 1e+12, got" in intensity_fault(low, high)
