"""A point for each method, with its name, on a logarithmic axis of seconds."""

from __future__ import annotations

import numpy as np
import pytest

from unoise_monai.render.costs import plot_costs


def test_every_method_is_drawn() -> None:
    one = plot_costs({"saliency": (0.1, 3.0)}, "rank")
    two = plot_costs({"saliency": (0.1, 3.0), "rise": (20.0, 5.0)}, "rank")
    assert one.dtype == np.uint8
    assert one.shape[2] == 3
    assert (one != two).any()
    # A second marker and name: more that is not white.
    assert (two < 255).any(axis=2).sum() > (one < 255).any(axis=2).sum()


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ({}, "points must hold at least one method"),
        ({"a": (0.0, 1.0)}, "with seconds above 0"),
        ({"a": (1.0, float("nan"))}, "points must be finite"),
    ],
)
def test_refusals(points: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plot_costs(points, "rank")
