"""What is drawn is what the file holds."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from unoise_monai.render import save_png
from unoise_monai.render.canvas import figure_to_rgb


def test_file_holds_the_array(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    save_png(rgb, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), rgb)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(np.zeros((2, 2, 3), dtype=np.uint8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8)])
def test_refuses_other_arrays(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rgb must be uint8 of shape \(H, W, 3\), got"):
        save_png(bad, tmp_path / "a.png")


def test_figure_of_the_size_asked_for() -> None:
    rgb = figure_to_rgb(Figure(figsize=(1.2, 0.8), dpi=100, facecolor=(1, 0, 0)))
    assert rgb.shape == (80, 120, 3)
    assert (rgb == [255, 0, 0]).all()
