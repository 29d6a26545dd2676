"""Pictures of the report: small enough, alike, and without what a file says beside its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unoise_monai.report.charts import UNREADABLE_PICTURE, copy_picture


def picture(path: Path, size: tuple[int, int] = (900, 300)) -> Path:
    """Red on the left, blue on the right, with a name in its text."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2, 0] = 255
    pixels[:, size[0] // 2 :, 2] = 255
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "DOE^JANE")
    Image.fromarray(pixels).save(path, pnginfo=text)
    return path


def test_a_copy_fits_and_keeps_its_shape(tmp_path: Path) -> None:
    found = copy_picture(picture(tmp_path / "a.png"), tmp_path / "b.jpg", (300, 300))
    assert found == ("b.jpg", 300, 100)
    copy = np.asarray(Image.open(tmp_path / "b.jpg")).astype(int)
    assert copy.shape == (100, 300, 3)
    assert copy[50, 20].tolist() == pytest.approx([255, 0, 0], abs=12)
    assert copy[50, 280].tolist() == pytest.approx([0, 0, 255], abs=12)


def test_a_small_picture_is_not_enlarged(tmp_path: Path) -> None:
    assert copy_picture(picture(tmp_path / "a.png", (40, 20)), tmp_path / "b.jpg") == ("b.jpg", 40, 20)


def test_no_text_is_taken_over(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    assert b"DOE^JANE" in source.read_bytes()
    copy_picture(source, tmp_path / "b.jpg")
    assert b"DOE" not in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_picture_leaves_no_copy(content: bytes | None, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    source.write_bytes(source.read_bytes()[:200] if content is None else content)
    with pytest.raises(UNREADABLE_PICTURE):
        copy_picture(source, tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()
