"""Sizes of panels in millimetres, their places, and how many of them stand side by side."""

import numpy as np
import pytest

from unoise_monai.render.panels import (
    LETTERS_ROOM,
    Panel,
    cell_size,
    draw_panels,
    panel_sizes,
    sheet_columns,
    title_width,
)


def test_panels_have_the_proportions_of_their_pictures_in_mm() -> None:
    assert panel_sizes([(40, 40)], [(5.0, 1.0)], 300) == [(300, 60)]
    assert panel_sizes([(10, 50)], [(5.0, 1.0)], 300) == [(300, 300)]
    assert panel_sizes([(1, 1000)], [(1.0, 1.0)], 300) == [(1, 300)]


def test_panels_of_one_sheet_have_one_scale() -> None:
    """Axial, coronal and sagittal pictures of 100 x 60 x 40 mm."""
    shapes, pixels_mm = [(60, 50), (20, 50), (20, 60)], [(1.0, 2.0), (2.0, 2.0), (2.0, 1.0)]
    assert panel_sizes(shapes, pixels_mm, 500) == [(300, 500), (200, 500), (200, 300)]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 4), (10, 5), (12, 4)])
def test_sheet_of_square_panels_has_no_empty_place(count: int, columns: int) -> None:
    assert sheet_columns(count, 100, 100) == columns


@pytest.mark.parametrize("title", ["sagittal MIP, 20 mm", "ill", "B ≤ 0.7 (0.12%)"])
def test_a_title_needs_its_width_and_room_to_the_next(title: str) -> None:
    """As drawn alone on a panel far wider than the title."""
    lit = np.flatnonzero(draw_panels([Panel(np.zeros((4, 100, 3)), title)], longest=600).any(axis=(0, 2)))
    assert 8 < title_width(title) - (lit[-1] - lit[0] + 1) < 24
    assert title_width("") == 0


def test_a_place_has_room_for_the_panel_its_title_and_its_letters() -> None:
    assert cell_size((300, 200), "", True, 0) == (300, 200)
    assert cell_size((20, 10), "", False, 0) == (20, 10)
    assert cell_size((20, 200), "", True, 0) == (LETTERS_ROOM, 200)
    assert cell_size((200, 20), "", True, 0) == (200, LETTERS_ROOM)
    assert cell_size((200, 20), "a title", True, 0) == (200, title_width("a title"))
    assert cell_size((200, 20), "a title", True, 150) == (200, 150)
