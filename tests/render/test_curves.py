"""The curve of Dice against visible voxels: every curve drawn, bad ones refused."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from unoise_monai.render import plot_visibility
from unoise_monai.render.curves import COLOURS, style

SHARES = np.linspace(0.1, 1, 10)


def drawn(rgb: np.ndarray, colour: str) -> np.ndarray:
    return np.argwhere((rgb == np.round(255 * np.array(to_rgb(colour)))).all(axis=2))


def test_each_curve_has_its_own_colour() -> None:
    rgb = plot_visibility({"a": (SHARES, SHARES), "b": (SHARES, 1 - SHARES)}, "title", reference=0.5)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (880, 1320, 3)
    assert len(drawn(rgb, COLOURS[0])) > 500
    assert len(drawn(rgb, COLOURS[1])) > 500
    assert len(drawn(rgb, COLOURS[2])) == 0


def test_a_rising_curve_rises() -> None:
    pixels = drawn(plot_visibility({"a": (SHARES, SHARES)}), COLOURS[0])
    left, right = pixels[pixels[:, 1] < 400], pixels[(pixels[:, 1] > 700) & (pixels[:, 0] < 400)]
    assert left[:, 0].mean() > right[:, 0].mean()


def test_order_of_the_points_does_not_matter() -> None:
    dice = SHARES**2
    backwards = plot_visibility({"a": (SHARES[::-1], dice[::-1])})
    np.testing.assert_array_equal(backwards, plot_visibility({"a": (SHARES, dice)}))


def test_reference_line_is_drawn() -> None:
    without = plot_visibility({"a": (SHARES, SHARES)})
    assert len(drawn(plot_visibility({"a": (SHARES, SHARES)}, reference=0.9), "#555555")) > len(
        drawn(without, "#555555")
    )


def test_many_curves_put_the_legend_beside_the_plot() -> None:
    curves = {f"method {k}": (SHARES, SHARES ** (k + 1)) for k in range(12)}
    assert plot_visibility(curves).shape == (880, 1320, 3)


def test_no_two_of_many_curves_look_alike() -> None:
    assert len({style(number) for number in range(147)}) == 147


def test_curves_that_share_colour_and_line_differ_on_the_plot() -> None:
    # The first and the 22nd, far apart; the others cover each other between them.
    names = [f"method {k}" for k in range(22)]
    low, high, middle = np.full_like(SHARES, 0.2), np.full_like(SHARES, 0.8), np.full_like(SHARES, 0.5)
    one = {name: (SHARES, {0: low, 21: high}.get(number, middle)) for number, name in enumerate(names)}
    other = {name: (SHARES, {0: high, 21: low}.get(number, middle)) for number, name in enumerate(names)}
    assert (plot_visibility(one) != plot_visibility(other)).any()


def test_another_measure_is_named_on_its_axis_and_in_errors() -> None:
    curves = {"a": (SHARES, SHARES)}
    assert (plot_visibility(curves, measure="soft dice")[:, :110] != plot_visibility(curves)[:, :110]).any()
    with pytest.raises(ValueError, match="IoU of 'a' must be finite"):
        plot_visibility({"a": (SHARES, 2 * SHARES)}, measure="IoU")


def test_refuses_bad_curves() -> None:
    with pytest.raises(ValueError, match="curves must hold at least one curve, got none"):
        plot_visibility({})
    with pytest.raises(ValueError, match=r"curve 'a' must be two 1-D arrays of one length, got \(10,\) and \(9,\)"):
        plot_visibility({"a": (SHARES, SHARES[1:])})
    with pytest.raises(ValueError, match="curve 'a' must be two 1-D arrays"):
        plot_visibility({"a": (np.array([]), np.array([]))})
    with pytest.raises(ValueError, match=r"share visible of 'a' must be finite and lie in \[0, 1\]"):
        plot_visibility({"a": (100 * SHARES, SHARES)})
    with pytest.raises(ValueError, match="Dice of 'a' must be finite"):
        plot_visibility({"a": (SHARES, SHARES * np.nan)})
    with pytest.raises(ValueError, match="reference must be finite"):
        plot_visibility({"a": (SHARES, SHARES)}, reference=86.9)
