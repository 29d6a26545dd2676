"""Frames to one animated picture for slides: GIF, or PNG without loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice

FORMATS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}


def save_animation(frames: NDArray[Any], path: str | os.PathLike[str], frame_ms: int = 100) -> None:
    """Write an animated picture that repeats for ever, whole or not at all.

    A ``.gif`` opens in every slide program; its up to 256 colours are chosen once for all frames, without dithering,
    so that nothing flickers, and up to 256 greys are kept as they are. A ``.png`` or ``.apng`` (animated PNG) keeps
    every colour, at several times the size; programs that do not know it show the first frame. A frame equal to the one
    before is stored as a longer stay.

    Args:
        frames: ``(N, H, W, 3)``, uint8, at least two.
        path: the file to write, its suffix the format; missing folders are created.
        frame_ms: how long each frame stays, ms: from 20, below which viewers set a time of their own, to 65,530, in
            steps of 10, as GIF counts.

    Raises:
        ValueError: when ``frames`` is not uint8 of shape ``(N, H, W, 3)`` with N of at least 2, or is empty.
        ValueError: when the suffix is not .gif, .png or .apng.
        ValueError: when ``frame_ms`` is not a multiple of 10 from 20 to 65,530.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2 or frames.size == 0:
        got = f"got {frames.dtype} of shape {frames.shape}"
        raise ValueError(f"frames must be uint8 of shape (N, H, W, 3) with N of at least 2, {got}")
    suffix = Path(path).suffix.lower()
    check_choice("suffix of the animation", suffix, tuple(FORMATS))
    if not 20 <= frame_ms <= 65530 or frame_ms % 10:
        raise ValueError(f"frame_ms must be a multiple of 10 from 20 to 65530, got {frame_ms}")
    pictures = _indexed(frames) if suffix == ".gif" else [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            format=FORMATS[suffix],
            save_all=True,
            append_images=pictures[1:],
            duration=frame_ms,
            loop=0,
        )


def _indexed(frames: NDArray[np.uint8]) -> list[Image.Image]:
    """Pictures of one common palette, quantised in one piece, so that a colour is the same in every frame."""
    count, height, width, _ = frames.shape
    strip = Image.fromarray(frames.reshape(count * height, width, 3)).quantize(256)
    indices = np.asarray(strip).reshape(count, height, width)
    pictures = []
    for index in indices:
        picture = Image.fromarray(index)
        picture.putpalette(strip.getpalette() or [])
        pictures.append(picture)
    return pictures
