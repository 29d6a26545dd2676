"""The report's own copies of a case's pictures: smaller files, and thumbnails."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from unoise_monai.atomic import atomic_path

LONGEST = 1800
"""Pixels of a picture's longer side on a case's page."""
THUMBNAIL = (336, 144)
"""Most pixels of a thumbnail, for screens of up to two pixels a CSS pixel."""
QUALITY = 88
UNREADABLE_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of a file that is broken (a PNG by SyntaxError) or claims to be huge."""


class Picture(NamedTuple):
    """A picture of the report: its file's name, and its size in pixels, which keeps a page from jumping."""

    file: str
    width: int
    height: int


def copy_picture(source: Path, target: Path, most: tuple[int, int] = (LONGEST, LONGEST)) -> Picture:
    """Write a picture as JPEG, at most so large, without any text that its file holds.

    Args:
        source: any picture that Pillow reads.
        target: the file to write, ends in ``.jpg``.
        most: width and height, pixels, that it is shrunk to fit in.

    Raises:
        OSError: when ``source`` is no picture or is truncated.
    """
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(most, Image.Resampling.LANCZOS)
    # Rebuilt from its pixels: texts, dates and other fields of the source stay behind.
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    with atomic_path(target) as temporary:
        clean.save(temporary, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return Picture(target.name, *clean.size)
