"""Sheets of slices: sizes in millimetres, grey levels, letters."""

import numpy as np
import pytest

from unoise_monai.render.canonical import EDGE_LETTERS
from unoise_monai.render.panels import (
    GAP,
    LARGEST_PANEL,
    SMALLEST_PANEL,
    Panel,
    draw_panels,
    longest_side,
    panel_sizes,
    sheet_columns,
)


def test_panels_have_the_proportions_of_their_pictures_in_mm() -> None:
    assert panel_sizes([(40, 40)], [(5.0, 1.0)], 300) == [(300, 60)]
    assert panel_sizes([(10, 50)], [(5.0, 1.0)], 300) == [(300, 300)]
    assert panel_sizes([(1, 1000)], [(1.0, 1.0)], 300) == [(1, 300)]


def test_panels_of_one_sheet_have_one_scale() -> None:
    """Axial, coronal and sagittal pictures of 100 x 60 x 40 mm."""
    shapes, pixels_mm = [(60, 50), (20, 50), (20, 60)], [(1.0, 2.0), (2.0, 2.0), (2.0, 1.0)]
    assert panel_sizes(shapes, pixels_mm, 500) == [(300, 500), (200, 500), (200, 300)]


def test_longest_side_shows_every_voxel_within_bounds() -> None:
    sides = [longest_side([Panel(np.zeros((rows, 30, 3))), Panel(np.zeros((5, 5, 3)))]) for rows in (40, 500, 2000)]
    assert sides == [SMALLEST_PANEL, 500, LARGEST_PANEL]


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


def test_pictures_of_different_shapes_lie_side_by_side() -> None:
    """Each picture in a grey of its own, so that its place can be found."""
    shapes, pixels_mm = [(100, 30), (20, 30), (20, 50)], [(1.0, 2.0), (2.0, 2.0), (2.0, 1.0)]
    greys, sizes = (1.0, 0.6, 0.2), [(100, 60), (40, 60), (40, 50)]
    pictures = [np.full((*shape, 3), grey) for shape, grey in zip(shapes, greys, strict=True)]
    panels = [Panel(picture, pixel_mm=mm) for picture, mm in zip(pictures, pixels_mm, strict=True)]
    rgb = draw_panels(panels, longest=100)
    left = GAP
    for grey, (height, width) in zip(greys, sizes, strict=True):
        expected = np.zeros(rgb.shape[:2], dtype=bool)
        expected[GAP : GAP + height, left : left + width] = True
        np.testing.assert_array_equal(rgb[..., 0] == 255 * grey, expected)
        left += width + GAP
    assert rgb.shape == (100 + 2 * GAP, left, 3)


def test_a_panel_may_have_letters_of_its_own() -> None:
    black = np.zeros((10, 10, 3))
    ours = draw_panels([Panel(black, letters=EDGE_LETTERS[0])], letters=EDGE_LETTERS[2])
    np.testing.assert_array_equal(ours, draw_panels([Panel(black)], letters=EDGE_LETTERS[0]))
    assert (ours != draw_panels([Panel(black)], letters=EDGE_LETTERS[2])).any()
    assert not draw_panels([Panel(black)]).any()


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
