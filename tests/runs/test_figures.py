"""The figures of a case equal those counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unoise_monai.runs.save import case_figures, organ_figures

SEGMENTATION = np.zeros((4, 3, 2), np.uint8)
SEGMENTATION[0] = 1
SEGMENTATION[1, 0] = 2
IMPORTANCE = np.where(SEGMENTATION > 0, 0.75, 0.25).astype(np.float32)
VOXEL_ML = 0.2


def test_volumes_and_importance_by_hand() -> None:
    found = case_figures(IMPORTANCE, SEGMENTATION, None, ("background", "a", "b", "c"), VOXEL_ML)
    assert found["volume_ml_a"] == pytest.approx(6 * 0.2)
    assert found["volume_ml_b"] == pytest.approx(2 * 0.2)
    assert found["volume_ml_c"] == 0
    assert found["importance_in_foreground"] == 0.75
    assert found["importance_in_background"] == 0.25
    assert found["importance_mean"] == pytest.approx((8 * 0.75 + 16 * 0.25) / 24)
    assert found["importance_p50"] == 0.25
    assert "dice" not in found


def test_dice_by_hand_and_of_a_class_that_the_label_lacks() -> None:
    label = np.zeros_like(SEGMENTATION)
    label[0, :2] = 1
    found = case_figures(IMPORTANCE, SEGMENTATION, label, ("background", "a", "b"), VOXEL_ML)
    assert found["dice_a"] == pytest.approx(2 * 4 / (6 + 4))
    assert math.isnan(found["dice_b"])
    assert found["dice"] == found["dice_a"]


def test_nothing_segmented_has_no_mean_there() -> None:
    found = case_figures(IMPORTANCE, np.zeros_like(SEGMENTATION), None, ("background", "a"), VOXEL_ML)
    assert math.isnan(found["importance_in_foreground"])


def test_organs_by_hand() -> None:
    organs = np.zeros((4, 3, 2), np.int64)
    organs[0] = 7
    liver, elsewhere = organ_figures(IMPORTANCE, organs, {7: "liver"}, VOXEL_ML)
    assert (liver.organ, elsewhere.organ) == ("liver", "elsewhere")
    assert liver.importance_share == pytest.approx(6 * 0.75 / (8 * 0.75 + 16 * 0.25))
    assert liver.volume_share == pytest.approx(0.25)
    assert liver.volume_ml == pytest.approx(1.2)
    assert liver.mean_importance == pytest.approx(0.75)
