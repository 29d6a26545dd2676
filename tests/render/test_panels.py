"""Sheets of slices: sizes in millimetres, grey levels, letters."""

import numpy as np
import pytest

from unoise_monai.render.canonical import EDGE_LETTERS
from unoise_monai.render.panels import GAP, Panel, draw_panels, grey_levels, panel_size, sheet_columns


def test_window_turns_its_ends_black_and_white() -> None:
    grey = grey_levels(np.array([-1000.0, -160, 40, 240, 3000]), (-160, 240))
    assert grey.tolist() == [0, 0, 0.5, 1, 1]


def test_default_window_leaves_outliers_out() -> None:
    image = np.append(np.linspace(0, 1, 1000), 1e6)
    assert grey_levels(image)[500] == pytest.approx(0.5, abs=0.02)


def test_a_few_bright_voxels_on_nothing_are_told_apart() -> None:
    image = np.zeros(1000)
    image[:2] = (50, 200)
    assert grey_levels(image)[:3].tolist() == [0.25, 1, 0]


def test_constant_image_is_black() -> None:
    assert (grey_levels(np.full((3, 3), 7.0)) == 0).all()


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0), (0.0, 1.0, 2.0)])
def test_refuses_a_bad_window(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="window must be"):
        grey_levels(np.zeros(3), window)


def test_panel_has_the_proportions_of_the_slice_in_mm() -> None:
    assert panel_size((40, 40), (5.0, 1.0), 300) == (300, 60)
    assert panel_size((10, 50), (5.0, 1.0), 300) == (300, 300)
    assert panel_size((1, 1000), (1.0, 1.0), 300) == (1, 300)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 4), (10, 5), (12, 4)])
def test_sheet_of_square_panels_has_no_empty_place(count: int, columns: int) -> None:
    assert sheet_columns(count, 100, 100) == columns


def test_slice_fills_its_place_exactly() -> None:
    """White slices on black, so that each row and column of the sheet says where they lie."""
    panel = Panel(np.ones((10, 20, 3)))
    rgb = draw_panels([panel, panel], (2.0, 1.0), dict.fromkeys(EDGE_LETTERS[0], ""), longest=100)
    white = (rgb == 255).all(axis=2)
    expected = np.zeros((100 + 2 * GAP, 2 * 100 + 3 * GAP), dtype=bool)
    expected[GAP:-GAP, GAP : GAP + 100] = True
    expected[GAP:-GAP, 2 * GAP + 100 : -GAP] = True
    np.testing.assert_array_equal(white, expected)


def test_outline_runs_around_the_region_and_along_the_edge() -> None:
    region = np.zeros((20, 20), dtype=bool)
    region[:10, :10] = True
    letters = dict.fromkeys(EDGE_LETTERS[0], "")
    rgb = draw_panels([Panel(np.zeros((20, 20, 3)), outlines=[region])], (1.0, 1.0), letters, longest=200)
    cyan = rgb[GAP:-GAP, GAP:-GAP, 2] > 100
    assert cyan[97:103, 20:90].any(axis=0).all()
    assert cyan[20:90, 97:103].any(axis=1).all()
    assert cyan[:2, 20:90].any(axis=0).all()
    assert not cyan[105:].any()
    assert not cyan[5:95, 5:95].any()


def test_letters_and_bar_are_drawn() -> None:
    panel = Panel(np.zeros((10, 10, 3)))
    plain = draw_panels([panel], (1.0, 1.0), EDGE_LETTERS[2])
    inside = plain[GAP:-GAP, GAP:-GAP].any(axis=2)
    assert inside[:30].any()
    assert inside[-30:].any()
    assert inside[:, :30].any()
    assert inside[:, -30:].any()
    assert not inside[60:150, 60:150].any()
    barred = draw_panels([panel], (1.0, 1.0), EDGE_LETTERS[2], "inferno", "importance, 0 to 1")
    assert barred.shape[1] > plain.shape[1]
    np.testing.assert_array_equal(barred[:, : plain.shape[1] - GAP], plain[:, :-GAP])
