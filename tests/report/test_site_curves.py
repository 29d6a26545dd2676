"""The charts say what counting voxels one by one says."""

from __future__ import annotations

import numpy as np
import pytest

from unoise_monai.report.charts import BINS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, charts, coverage, draw, histograms

RNG = np.random.default_rng(1)
IMPORTANCE = RNG.permutation(1000).reshape(10, 10, 10).astype(np.float32) / 1000
SEGMENTATION = (RNG.random((10, 10, 10)) < 0.3).astype(np.uint8) * 2


def test_histograms_count_voxels() -> None:
    inside = SEGMENTATION > 0
    within, without = histograms(IMPORTANCE, inside)
    for found, mask in ((within, inside), (without, ~inside)):
        counts = [0] * BINS
        for value in np.round(IMPORTANCE[mask] * 1000).astype(int):
            counts[value * BINS // 1000] += 1
        np.testing.assert_allclose(found, np.array(counts) / mask.sum(), atol=0.01)
        assert found.sum() == pytest.approx(1)


def test_coverage_counts_voxels_in_their_order() -> None:
    share, found = coverage(IMPORTANCE, SEGMENTATION > 0)
    order = np.argsort(-IMPORTANCE.ravel())
    seen = (SEGMENTATION.ravel() > 0)[order]
    assert share.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert found.tolist() == pytest.approx([seen[: 100 * step].sum() / seen.sum() for step in range(11)])


def test_coverage_of_a_perfect_and_of_a_constant_map() -> None:
    inside = SEGMENTATION > 0
    share, found = coverage(inside.astype(float), inside)
    assert found[1:-1].min() > 0.99
    assert share[1] == pytest.approx(inside.mean())
    share, found = coverage(np.ones((10, 10, 10)), inside)
    assert share.tolist() == found.tolist() == [0] + [1] * 10


def test_two_charts_or_none() -> None:
    found = charts(IMPORTANCE, SEGMENTATION)
    assert [len(chart.paths) for chart in found] == [2, 2]
    assert [len(chart.rows) for chart in found] == [BINS, 11]
    assert charts(IMPORTANCE, np.zeros((10, 10, 10))) == []
    assert charts(IMPORTANCE, np.ones((10, 10, 10))) == []


def test_lines_stay_within_the_plot() -> None:
    line = Line("a", "inside", np.array([0.0, 0.5, 1.0]), np.array([0.0, 9.0, 18.0]))
    chart = draw("t", "n", "x", "y", [line], (0, 1))
    points = [tuple(map(float, point.split(","))) for point in chart.paths[0][2].split()]
    left, right, bottom, top = LEFT, WIDTH - RIGHT, chart.y_ticks[0].at, TOP
    assert points[0] == (left, bottom)
    assert points[2][0] == right
    assert bottom < HEIGHT
    # The axis ends at the next round number, 20.
    assert chart.y_ticks[-1] == (top, "20")
    assert points[2][1] == pytest.approx(bottom - (bottom - top) * 18 / 20, abs=0.1)
    assert [tick.text for tick in chart.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert chart.rows == [["0", "0.0"], ["0.5", "9.0"], ["1", "18.0"]]
