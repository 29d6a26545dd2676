"""Sheets of panels: sizes in millimetres, places, titles, letters, outlines and the colour bar."""

import numpy as np
import pytest

from unoise_monai.render.canvas import EDGE_LETTERS
from unoise_monai.render.panels import (
    BAR_WIDTH,
    GAP,
    LARGEST_PANEL,
    LETTERS_ROOM,
    SMALLEST_PANEL,
    TITLE_HEIGHT,
    Panel,
    cell_size,
    draw_panels,
    longest_side,
    panel_sizes,
    sheet_columns,
    title_width,
)


def test_longest_side_shows_every_voxel_within_bounds() -> None:
    sides = [longest_side([Panel(np.zeros((rows, 30, 3))), Panel(np.zeros((5, 5, 3)))]) for rows in (40, 500, 2000)]
    assert sides == [SMALLEST_PANEL, 500, LARGEST_PANEL]


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
    # Well within a level, so that it is the same whether rounded or cut off.
    greys, sizes = (1.0, 153.4 / 255, 51.4 / 255), [(100, 60), (40, 60), (40, 50)]
    pictures = [np.full((*shape, 3), grey) for shape, grey in zip(shapes, greys, strict=True)]
    panels = [Panel(picture, pixel_mm=mm) for picture, mm in zip(pictures, pixels_mm, strict=True)]
    rgb = draw_panels(panels, longest=100)
    left = GAP
    for grey, (height, width) in zip(greys, sizes, strict=True):
        expected = np.zeros(rgb.shape[:2], dtype=bool)
        expected[GAP : GAP + height, left : left + width] = True
        np.testing.assert_array_equal(rgb[..., 0] == int(255 * grey), expected)
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
    assert all(edge.any() for edge in (inside[:30], inside[-30:], inside[:, :30], inside[:, -30:]))
    assert not inside[60:150, 60:150].any()
    barred = draw_panels([panel], (1.0, 1.0), EDGE_LETTERS[2], "inferno", "importance, 0 to 1")
    assert barred.shape[1] > plain.shape[1]
    np.testing.assert_array_equal(barred[:, : plain.shape[1] - GAP], plain[:, :-GAP])


def runs(lit: np.ndarray) -> list[tuple[int, int]]:
    """First and last of every stretch of True that no gap as wide as between two words interrupts."""
    at = np.flatnonzero(lit)
    breaks = np.flatnonzero(np.diff(at) > 12)
    return list(zip(at[[0, *(breaks + 1)]].tolist(), at[[*breaks, -1]].tolist(), strict=True))


def test_titles_of_narrow_panels_stand_apart_and_above_their_panels() -> None:
    title = "slice 101 of 120"
    rgb = draw_panels([Panel(np.ones((90, 4, 3)), title)] * 5)
    titles = runs(rgb[: GAP + TITLE_HEIGHT - 2].any(axis=(0, 2)))
    pictures = runs(rgb[GAP + TITLE_HEIGHT : -GAP].all(axis=(0, 2)))
    assert len(titles) == len(pictures) == 5
    assert titles[0][0] >= GAP
    assert titles[-1][1] < rgb.shape[1] - GAP
    for (start, stop), (left, right) in zip(titles, pictures, strict=True):
        assert right - left + 1 == 16  # of 360 high
        assert (start + stop) / 2 == pytest.approx((left + right) / 2, abs=2)


@pytest.mark.parametrize(
    ("shape", "longest"), [((4, 200), 200), ((200, 4), 200), ((1, 1), 16), ((1, 200), 200), ((4, 12), 60), ((3, 3), 60)]
)
@pytest.mark.parametrize("sides", ["R L A P", "RA LP S I"])
def test_letters_stand_apart_however_small_the_panel(shape: tuple[int, int], longest: int, sides: str) -> None:
    letters = dict(zip(("left", "right", "top", "bottom"), sides.split(), strict=True))
    panel = Panel(np.zeros((*shape, 3)), "title")

    def lit(*shown: str) -> np.ndarray:
        kept = {edge: letters[edge] if edge in shown else "" for edge in letters}
        return draw_panels([panel], letters=kept, longest=longest).any(axis=2)

    title = lit()
    each = [lit(edge) & ~title for edge in letters]
    band = GAP + TITLE_HEIGHT - 2
    assert not title[band:].any()
    for letter in each:
        assert letter.sum() > 5
        assert not np.concatenate([letter[:band].ravel(), letter[-1], letter[:, 0], letter[:, -1]]).any()
    assert np.sum(each, axis=0).max() == 1
    np.testing.assert_array_equal(lit(*letters), np.any([title, *each], axis=0))


def test_a_flat_panel_keeps_its_proportions() -> None:
    rgb = draw_panels([Panel(np.ones((4, 80, 3)))], letters=dict.fromkeys(EDGE_LETTERS[0], ""), longest=400)
    white = (rgb == 255).all(axis=2)
    rows = np.flatnonzero(white.any(axis=1))
    assert rgb.shape[0] == LETTERS_ROOM + 2 * GAP
    assert rows[0] + rows[-1] == rgb.shape[0] - 1
    assert white.sum() == rows.size * 400 == 20 * 400


@pytest.mark.parametrize(("shape", "longest"), [((4, 80), 300), ((16, 16), 16)])
def test_the_bar_is_whole_beside_a_low_sheet(shape: tuple[int, int], longest: int) -> None:
    """As many pixels of ticks and label as beside a tall one."""

    def bar(shape: tuple[int, int], longest: int) -> np.ndarray:
        options = {"colour_map": "gray", "colour_label": "importance, 0 to 1", "longest": longest}
        sheet = draw_panels([Panel(np.zeros((*shape, 3)))], **options)  # type: ignore[arg-type]
        return sheet[:, -BAR_WIDTH + 26 :]

    low, tall = bar(shape, longest), bar((16, 16), 360)
    assert not low[[0, -1]].any()
    assert low.any(axis=2).sum() == pytest.approx(tall.any(axis=2).sum(), rel=0.05)


def test_sheets_of_other_titles_may_be_of_one_size() -> None:
    black = np.zeros((10, 4, 3))
    short, long = (draw_panels([Panel(black, title)], narrowest=150) for title in ("A", "from the left"))
    assert short.shape == long.shape
    assert short.shape[1] == 150 + 2 * GAP


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
    assert cell_size((200, 20), "a title", True, 0) == (200, title_width("a title"))
    assert cell_size((200, 20), "a title", True, 150) == (200, 150)
