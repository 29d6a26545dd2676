"""Every curve and point is drawn, on its own, with its name; bad ones are refused."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from unoise_monai.render import curves as costs
from unoise_monai.render import plot_visibility
from unoise_monai.render.canvas import figure_to_rgb
from unoise_monai.render.curves import COLOURS, plot_costs, style

SHARES = np.linspace(0.1, 1, 10)


def drawn(rgb: np.ndarray, colour: str) -> np.ndarray:
    return np.argwhere((rgb == np.round(255 * np.array(to_rgb(colour)))).all(axis=2))


def test_each_curve_has_its_own_colour() -> None:
    rgb = plot_visibility({"a": (SHARES, SHARES), "b": (SHARES, 1 - SHARES)}, "title", reference=0.5)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (880, 1320, 3)
    assert [len(drawn(rgb, colour)) > 500 for colour in COLOURS[:3]] == [True, True, False]
    assert len(drawn(rgb, COLOURS[2])) == 0


def test_a_rising_curve_rises_whatever_the_order_of_its_points() -> None:
    rgb = plot_visibility({"a": (SHARES, SHARES)})
    pixels = drawn(rgb, COLOURS[0])
    left, right = pixels[pixels[:, 1] < 400], pixels[(pixels[:, 1] > 700) & (pixels[:, 0] < 400)]
    assert left[:, 0].mean() > right[:, 0].mean()
    np.testing.assert_array_equal(plot_visibility({"a": (SHARES[::-1], SHARES[::-1])}), rgb)
    referred = plot_visibility({"a": (SHARES, SHARES)}, reference=0.9)
    assert len(drawn(referred, "#555555")) > len(drawn(rgb, "#555555"))


def test_many_curves_put_the_legend_beside_the_plot() -> None:
    curves = {f"method {k}": (SHARES, SHARES ** (k + 1)) for k in range(12)}
    assert plot_visibility(curves).shape == (880, 1320, 3)


def test_no_two_of_many_curves_look_alike() -> None:
    assert len({style(number) for number in range(147)}) == 147
    # The first and the 22nd share colour and line; the others cover each other between them.
    low, high, middle = (np.full_like(SHARES, level) for level in (0.2, 0.8, 0.5))
    one, other = (
        plot_visibility({f"method {k}": (SHARES, {0: first, 21: last}.get(k, middle)) for k in range(22)})
        for first, last in ((low, high), (high, low))
    )
    assert (one != other).any()


def test_another_measure_is_named_on_its_axis_and_in_errors() -> None:
    curves = {"a": (SHARES, SHARES)}
    assert (plot_visibility(curves, measure="soft dice")[:, :110] != plot_visibility(curves)[:, :110]).any()
    with pytest.raises(ValueError, match="IoU of 'a' must be finite"):
        plot_visibility({"a": (SHARES, 2 * SHARES)}, measure="IoU")


@pytest.mark.parametrize(
    ("curves", "reference", "message"),
    [
        ({}, None, "curves must hold at least one curve, got none"),
        ({"a": (SHARES, SHARES[1:])}, None, r"curve 'a' must be two 1-D arrays of one length, got \(10,\) and \(9,\)"),
        ({"a": (np.array([]), np.array([]))}, None, "curve 'a' must be two 1-D arrays"),
        ({"a": (100 * SHARES, SHARES)}, None, r"share visible of 'a' must be finite and lie in \[0, 1\]"),
        ({"a": (SHARES, SHARES * np.nan)}, None, "Dice of 'a' must be finite"),
        ({"a": (SHARES, SHARES)}, 86.9, "reference must be finite"),
    ],
)
def test_refuses_bad_curves(curves: dict, reference: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_visibility(curves, reference=reference)


def test_every_method_is_drawn() -> None:
    one = plot_costs({"saliency": (0.1, 3.0)}, "rank")
    two = plot_costs({"saliency": (0.1, 3.0), "rise": (20.0, 5.0)}, "rank")
    assert one.dtype == np.uint8
    assert one.shape[2] == 3
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
    ("points", "message"),
    [
        ({}, "points must hold at least one method"),
        ({"a": (0.0, 1.0)}, "with seconds above 0"),
        ({"a": (1.0, float("nan"))}, "points must be finite"),
    ],
)
def test_refuses_bad_points(points: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_costs(points, "rank")
