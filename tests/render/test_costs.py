"""A point for each method, with its name, on a logarithmic axis of seconds."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from unoise_monai.render import curves as costs
from unoise_monai.render.canvas import figure_to_rgb
from unoise_monai.render.curves import plot_costs


def test_every_method_is_drawn() -> None:
    one = plot_costs({"saliency": (0.1, 3.0)}, "rank")
    two = plot_costs({"saliency": (0.1, 3.0), "rise": (20.0, 5.0)}, "rank")
    assert one.dtype == np.uint8
    assert one.shape[2] == 3
    assert (one != two).any()
    # A second marker and name: more that is not white.
    assert (two < 255).any(axis=2).sum() > (one < 255).any(axis=2).sum()


def test_names_lie_on_no_other_name_or_point(monkeypatch: pytest.MonkeyPatch) -> None:
    # As near as Grad-CAM++ and Guided Grad-CAM in a real scoreboard, and one at each edge.
    points = {"grad_cam_plus_plus": (0.15, 15.9), "guided_grad_cam": (0.3, 15.7), "edges": (0.01, 3.0), "rise": (20, 5)}
    figures: list[Figure] = []

    def kept(figure: Figure) -> np.ndarray:
        figures.append(figure)
        return figure_to_rgb(figure)

    monkeypatch.setattr(costs, "figure_to_rgb", kept)
    plot_costs(points, "rank")
    axes = figures[0].axes[0]
    names = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == list(points)
    dots = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in axes.transData.transform(list(points.values()))]
    assert all(name.count_overlaps(dots) == 0 for name in names)
    assert all(name.count_overlaps(names) == 1 for name in names)  # itself
    assert all(axes.bbox.containsx(name.x0) and axes.bbox.containsx(name.x1) for name in names)


def test_names_that_have_no_free_place_are_written_all_the_same() -> None:
    crowd = {f"method {k}": (1 + k / 1000, 1.0) for k in range(12)}
    assert plot_costs(crowd, "rank").shape[2] == 3


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
