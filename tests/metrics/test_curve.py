"""The curve of a score against the visible share, at known points."""

import math

import pytest
import torch

from unoise_monai.metrics.visibility import VisibilityCurve, VisibilityScores


def curve_of(share: list[float], dice: list[float]) -> VisibilityCurve:
    points = torch.tensor(share, dtype=torch.float64)
    return VisibilityCurve(points, points, torch.tensor(dice, dtype=torch.float64)[:, None])


def test_mean_score_leaves_out_classes_that_are_nan() -> None:
    points = torch.tensor([0.0, 1.0])
    curve = VisibilityCurve(points, points, torch.tensor([[0.2, math.nan], [0.4, 0.8]]))
    assert curve.mean_score.tolist() == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.35, 0.45), (0.5, 0.6), (0.75, 0.8), (1.0, 1.0)],
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_at_is_linear_between_the_points(share: float, expected: float, shuffled: bool) -> None:
    points, dice = [0.0, 0.2, 0.5, 1.0], [0.1, 0.3, 0.6, 1.0]
    order = [2, 0, 3, 1] if shuffled else [0, 1, 2, 3]
    assert curve_of([points[i] for i in order], [dice[i] for i in order]).at(share) == pytest.approx(expected)


def test_at_outside_the_points_is_the_nearest() -> None:
    curve = curve_of([0.2, 0.8], [0.3, 0.9])
    assert [curve.at(share) for share in (0.0, 0.1, 0.9, 1.0)] == pytest.approx([0.3, 0.3, 0.9, 0.9])
    assert curve_of([0.4], [0.7]).at(0.1) == pytest.approx(0.7)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_at_and_area_bear_repeated_shares(share: float) -> None:
    """Two thresholds between which there is no voxel show the same share."""
    curve = curve_of([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.6, 0.6, 0.6, 1.0, 1.0])
    assert curve.at(share) == pytest.approx(0.2 + 0.8 * share)
    assert curve.area == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("share", "dice", "area"),
    [
        ([0.0, 1.0], [0.0, 1.0], 0.5),
        ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0], 0.75),
        ([1.0, 0.0, 0.5], [1.0, 0.0, 1.0], 0.75),
        ([0.2, 0.6], [0.4, 0.8], 0.6),
        ([0.3], [0.7], 0.7),
        ([0.3, 0.3], [0.7, 0.7], 0.7),
    ],
)
def test_area_of_known_curves(share: list[float], dice: list[float], area: float) -> None:
    assert curve_of(share, dice).area == pytest.approx(area)


def test_scores_of_volumes_average_to_a_curve() -> None:
    """A class that one volume lacks, NaN, is averaged over the others; a class that none has stays NaN."""
    nan = math.nan
    first = torch.tensor([[[0.1, nan, nan], [0.5, nan, nan]], [[0.3, 0.2, nan], [0.9, 0.4, nan]]])
    share = torch.tensor([[0.0, 0.4], [0.0, 0.6]])
    scores = VisibilityScores(torch.tensor([0.0, 0.5]), share, {"dice": first, "iou": first / 2})
    curve = scores.curve("dice")
    torch.testing.assert_close(curve.level, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(curve.share, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(curve.score, torch.tensor([[0.2, 0.2, nan], [0.7, 0.4, nan]]), equal_nan=True)
    torch.testing.assert_close(scores.curve("iou").mean_score, torch.tensor([0.1, 0.275]))
