"""What cannot be drawn is refused by name, rule and value, and no volume is looked at twice."""

from typing import Any

import numpy as np
import pytest

from unoise_monai.render.canvas import RANGE_SLACK, check_importance, check_picture, check_view, check_volume

SPACING_MM = (0.7, 1.1, 2.5)
VOLUME = np.random.default_rng(3).random((4, 5, 6))


class Watched(np.ndarray):
    """Counts how often its extremes are asked for."""

    passes = 0

    def min(self, *arguments: Any, **options: Any) -> Any:
        self.passes += 1
        return np.asarray(self).min(*arguments, **options)

    def max(self, *arguments: Any, **options: Any) -> Any:
        self.passes += 1
        return np.asarray(self).max(*arguments, **options)


def with_voxel(value: float) -> np.ndarray:
    volume = VOLUME.copy()
    volume[1, 2, 3] = value
    return volume


def test_each_volume_is_looked_at_once() -> None:
    image, importance, segmentation = (VOLUME.copy().view(Watched) for _ in range(3))
    check_picture(SPACING_MM, 0, image, importance, segmentation)
    assert [volume.passes for volume in (image, importance, segmentation)] == [2, 2, 2]
    labels = (VOLUME > 0.5).view(Watched)
    check_picture(SPACING_MM, 0, image, segmentation=labels)
    assert labels.passes == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": 3}, "axis must be one of 0, 1, 2, got 3"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm must be three finite numbers above 0"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm must be three finite numbers above 0"),
        ({"window": (1, 0)}, "window must be"),
        ({"style": "jet"}, "style must be one of 'colour', 'red', got 'jet'"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
        ({"image": VOLUME[:0]}, r"image must be 3-D and not empty, got shape \(0, 5, 6\)"),
        ({"image": VOLUME[0]}, r"image must be 3-D and not empty, got shape \(5, 6\)"),
        ({"image": VOLUME * 0}, "image must hold more than one value, got 0.0 in every voxel"),
        ({"image": np.full((2, 2, 2), 7, np.int16)}, "image must hold more than one value, got 7 in every voxel"),
        ({"importance": VOLUME[1:]}, r"importance must be of the image's shape \(4, 5, 6\), got \(3, 5, 6\)"),
        ({"segmentation": VOLUME[1:] > 0.5}, r"segmentation must be of the image's shape \(4, 5, 6\), got \(3, 5, 6\)"),
        ({"importance": VOLUME * 2}, r"importance must lie in \[0, 1\], got values from"),
        ({"importance": with_voxel(-0.01)}, r"importance must lie in \[0, 1\], got values from -0.01"),
    ],
)
def test_refuses_what_cannot_be_drawn(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_picture(**{"spacing_mm": SPACING_MM, "axis": 0, "image": VOLUME, **changes})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["image", "importance", "segmentation"])
def test_refuses_values_that_are_not_finite(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold finite values only, got NaN or infinity"):
        check_picture(SPACING_MM, 0, **{"image": VOLUME, name: with_voxel(bad)})


def test_importance_may_be_bool_and_the_rest_absent() -> None:
    check_picture(SPACING_MM, 2, VOLUME, importance=VOLUME > 0.5, window=(0, 1), style="red", threshold=0.5)


@pytest.mark.parametrize("outside", [-1.0, 1.0])
def test_importance_may_leave_the_unit_range_by_what_resampling_does(outside: float) -> None:
    end = max(outside, 0.0)
    inside, beyond = with_voxel(end + 0.9 * outside * RANGE_SLACK), with_voxel(end + 1.1 * outside * RANGE_SLACK)
    check_picture(SPACING_MM, 0, VOLUME, importance=inside)
    assert check_importance(inside)[1, 2, 3] == end
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\], got values from"):
        check_picture(SPACING_MM, 0, VOLUME, importance=beyond)
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\], got values from"):
        check_importance(beyond)


def test_the_slack_is_a_thousandth() -> None:
    """What resampling overshoots; a map in percent, or one that runs to 1.01, is none of 0 to 1."""
    assert RANGE_SLACK == 1e-3
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
        check_importance(VOLUME * np.nan)


def test_a_view_needs_no_volume() -> None:
    check_view(SPACING_MM, 1, (0, 1))
    with pytest.raises(ValueError, match="axis must be one of 0, 1, 2, got -1"):
        check_view(SPACING_MM, -1)
    with pytest.raises(ValueError, match="window must be"):
        check_view(SPACING_MM, 1, (0, np.inf))


def test_a_volume_gives_its_extremes() -> None:
    assert check_volume("map", VOLUME) == (VOLUME.min(), VOLUME.max())
