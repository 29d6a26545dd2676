"""One panel a layer: in order, each on its own scale, all over the same part of the patient."""

from typing import Any

import numpy as np
import pytest

from unoise_monai.render import slices as layers
from unoise_monai.render.canvas import grey_levels
from unoise_monai.render.mip import project
from unoise_monai.render.panels import GAP, TITLE_HEIGHT, Panel, sheet_columns
from unoise_monai.render.slices import PANEL_WIDTH, layer_grid

SHAPE = (16, 12, 8)
SPACING_MM = (1.0, 1.5, 3.0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels that ``layer_grid`` hands to the sheet."""
    panels: list[Panel] = []

    def keep(given: list[Panel], **options: Any) -> np.ndarray:
        panels[:] = given
        return np.zeros((1, 1, 3), dtype=np.uint8)

    monkeypatch.setattr(layers, "draw_panels", keep)
    return panels


def places(rgb: np.ndarray, count: int) -> list[np.ndarray]:
    """The square panels of a sheet, from the top left, without their titles."""
    columns, side = sheet_columns(count, PANEL_WIDTH, PANEL_WIDTH), PANEL_WIDTH
    tops = [GAP + TITLE_HEIGHT + number // columns * (side + TITLE_HEIGHT + GAP) for number in range(count)]
    lefts = [GAP + number % columns * (side + GAP) for number in range(count)]
    return [rgb[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)]


def extent(axis: int) -> tuple[float, float]:
    """Height and width, mm, of a picture along an axis."""
    width, height = np.delete(np.multiply(SHAPE, SPACING_MM), axis)
    return float(height), float(width)


def test_each_layer_is_scaled_to_the_range_that_its_title_says(drawn: list[Panel]) -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.random(SHAPE), rng.random(SHAPE)
    wide[0, 0], narrow[1, 1] = 0, 1  # rays of the lowest and of the highest value
    wide = wide / wide.max()
    maps = {"first": wide * 2000 - 1000, "last": narrow * 2e-7, "output": rng.random(SHAPE) > 0.99}
    layer_grid(maps, SPACING_MM)
    for panel, values in zip(drawn, maps.values(), strict=True):
        picture = project(values, 2).astype(float)
        expected = (picture - picture.min()) / np.ptp(picture)
        np.testing.assert_allclose(panel.rgb, np.repeat(expected[..., None], 3, axis=2), atol=1e-6)
    low = project(maps["last"], 2).min()
    assert [panel.title for panel in drawn] == ["first: -1e+03 to 1e+03", f"last: {low:.3g} to 2e-07", "output: 0 to 1"]


def test_maps_without_contrast_are_black_and_say_so(drawn: list[Panel]) -> None:
    maps = {"dead": np.zeros(SHAPE), "full": np.full(SHAPE, 0.25), "alive": np.random.default_rng(0).random(SHAPE)}
    layer_grid(maps, SPACING_MM)
    assert [panel.title for panel in drawn[:2]] == ["dead: all 0", "full: all 0.25"]
    assert [panel.rgb.max() for panel in drawn] == [0, 0, 1]


@pytest.mark.parametrize("axis", range(3))
def test_layers_of_fewer_voxels_cover_the_same_extent(drawn: list[Panel], axis: int) -> None:
    shapes = [*([size // 2**level for size in SHAPE] for level in range(3)), (5, 7, 3)]
    maps = {str(shape): np.random.default_rng(9).random(shape) for shape in shapes}
    layer_grid(maps, SPACING_MM, axis)
    for panel in drawn:
        assert panel.pixel_mm is not None
        np.testing.assert_allclose(np.array(panel.rgb.shape[:2]) * panel.pixel_mm, extent(axis))


def test_sheet_has_the_layers_in_order_and_in_place() -> None:
    """Of six layers, the n-th is bright in its n-th of the height, at the same place in coarse and fine layers."""
    maps = {}
    for number in range(6):
        size = 24 if number % 2 else 12
        values = np.zeros((size, size, 4))
        values[:, size - (number + 1) * size // 6 : size - number * size // 6] = 1  # from the front to the back
        maps[f"layer {number}"] = values
    rgb = layer_grid(maps, (1.0, 1.0, 2.0))
    for number, panel in enumerate(places(rgb, 6)):
        rows = np.flatnonzero((panel[:, 60] > 127).all(axis=1))
        assert rows[[0, -1]] == pytest.approx(np.array([number, number + 1]) * PANEL_WIDTH / 6, abs=8)


def test_the_image_comes_first_in_its_own_window(drawn: list[Panel]) -> None:
    image = np.random.default_rng(1).normal(100, 30, SHAPE)
    coarse = np.random.default_rng(2).random((4, 3, 2))
    layer_grid({"layer": coarse}, SPACING_MM, 1, image, (50, 150))
    assert drawn[0].title == "image"
    np.testing.assert_allclose(drawn[0].rgb[..., 0], grey_levels(project(image, 1), (50, 150)))
    assert [panel.pixel_mm for panel in drawn] == [(3.0, 1.0), (12.0, 4.0)]


@pytest.mark.parametrize(("count", "axis"), [(5, 2), (24, 1)])
def test_long_names_stay_inside_their_panels(count: int, axis: int) -> None:
    values = np.linspace(-1.23e-5, 9.87e-5, np.prod(SHAPE)).reshape(SHAPE)
    maps = {f"model.1.submodule.0.submodule.2.conv.unit{number}.adn.N": values for number in range(count)}
    rgb = layer_grid(maps, SPACING_MM, axis)
    height_mm, width_mm = extent(axis)
    height = round(PANEL_WIDTH * height_mm / width_mm)
    columns = sheet_columns(count, height, PANEL_WIDTH)
    assert rgb.shape[1] == columns * (PANEL_WIDTH + GAP) + GAP
    for column in range(columns + 1):
        left = column * (PANEL_WIDTH + GAP)
        assert not rgb[: GAP + TITLE_HEIGHT - 2, left : left + GAP].any()


def test_long_names_keep_both_ends(drawn: list[Panel]) -> None:
    name = "model.1.submodule.0.submodule.2.conv.unit1.adn.N"
    layer_grid({"short": np.zeros(SHAPE), name: np.zeros(SHAPE)}, SPACING_MM)
    kept, values = drawn[1].title.split(": ")
    head, tail = kept.split("…")
    assert drawn[0].title == "short: all 0"
    assert values == "all 0"
    assert len(tail) >= len(head) >= 5
    assert name.startswith(head)
    assert name.endswith(tail)


def test_refuses_bad_input() -> None:
    values = np.random.default_rng(4).random(SHAPE)
    with pytest.raises(ValueError, match="maps must hold at least one layer, got none"):
        layer_grid({}, SPACING_MM)
    for bad, message in (
        (values[None], r"be 3-D and not empty, got shape \(1, 16, 12, 8\)"),
        (values[:0], r"be 3-D and not empty, got shape \(0, 12, 8\)"),
        (np.where(values == values[3, 4, 5], np.nan, values), "hold finite values only, got NaN or infinity"),
        (np.where(values == values[3, 4, 5], np.inf, values), "hold finite values only, got NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=f"map of 'b' must {message}"):
            layer_grid({"a": values, "b": bad}, SPACING_MM)
    with pytest.raises(ValueError, match="must hold more than one value"):
        layer_grid({"a": values}, SPACING_MM, image=np.ones(SHAPE))
