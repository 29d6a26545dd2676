"""The charts show what counting voxels one by one gives; pictures are small and hold nothing but their pixels."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unoise_monai.report.cases import (
    BINS,
    COLOURS,
    UNREADABLE_PICTURE,
    charts,
    copy_picture,
    coverage,
    draw,
    histograms,
)

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
    assert [(len(chart.heads), len(chart.rows)) for chart in found] == [(3, BINS), (3, 11)]
    assert found == charts(IMPORTANCE, SEGMENTATION)
    assert charts(IMPORTANCE, np.zeros((10, 10, 10))) == []
    assert charts(IMPORTANCE, np.ones((10, 10, 10))) == []


def test_a_chart_is_markup_of_its_values_and_of_the_page_s_colours() -> None:
    lines = {"<b>a</b>": ("inside", np.array([0.0, 9.0, 18.0]))}
    chart = draw(
        "t", "n", np.array([0.0, 0.5, 1.0]), lines, {"xlabel": "x & y", "ylabel": "y", "xlim": (0, 1), "ylim": (0, 20)}
    )
    assert chart.heads == ["x & y", "<b>a</b>"]
    assert chart.rows == [["0", "0.0"], ["0.5", "9.0"], ["1", "18.0"]]
    svg = ElementTree.fromstring(f"<svg{chart.svg}")  # noqa: S314
    assert [text.text for text in svg.iter("text")][-1] == "<b>a</b>"
    assert {"x & y", "0.0", "1.0", "20.0"} <= {text.text for text in svg.iter("text")}
    # No id that two charts would share, no address of a schema, no colour and no font beside the page's.
    assert not re.search(r"\bid=|//|url\(|font-family", chart.svg)
    colours = set(re.findall(r"#[0-9a-f]{6}", chart.svg))
    assert colours == {COLOURS[name] for name in re.findall(r"var\(--(\w+)", chart.svg)}
    # The line runs through its values: equal steps to the right, and up.
    path = next(path for path in svg.iter("path") if "--inside" in path.get("style", ""))
    points = np.array(re.findall(r"[\d.]+", path.get("d", "")), dtype=float).reshape(-1, 2)
    right, up = np.diff(points, axis=0).T
    assert right[0] == pytest.approx(right[1])
    assert up[0] == pytest.approx(up[1])
    assert right[0] > 0 > up[0]


def picture(path: Path, size: tuple[int, int] = (900, 300)) -> Path:
    """Red on the left, blue on the right, with a name in its text."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2, 0] = 255
    pixels[:, size[0] // 2 :, 2] = 255
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "DOE^JANE")
    Image.fromarray(pixels).save(path, pnginfo=text)
    return path


def test_a_copy_fits_keeps_its_shape_and_takes_no_text_over(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    assert b"DOE^JANE" in source.read_bytes()
    assert copy_picture(source, tmp_path / "b.jpg", (300, 300)) == ("b.jpg", 300, 100)
    assert b"DOE" not in (tmp_path / "b.jpg").read_bytes()
    copy = np.asarray(Image.open(tmp_path / "b.jpg")).astype(int)
    assert copy.shape == (100, 300, 3)
    assert copy[50, [20, 280]].tolist() == [pytest.approx([255, 0, 0], abs=12), pytest.approx([0, 0, 255], abs=12)]
    # A small one is not enlarged.
    assert copy_picture(picture(source, (40, 20)), tmp_path / "b.jpg") == ("b.jpg", 40, 20)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_picture_leaves_no_copy(content: bytes | None, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    source.write_bytes(source.read_bytes()[:200] if content is None else content)
    with pytest.raises(UNREADABLE_PICTURE):
        copy_picture(source, tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()
