"""What an animation's file holds when it is read again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unoise_monai.render.rotation import save_animation

RNG = np.random.default_rng(0)


def read(path: Path) -> tuple[np.ndarray, list[float], int]:
    """Frames in RGB, how long each stays, ms, and how often it repeats, 0 for ever."""
    with Image.open(path) as animation:
        frames, stays = [], []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")))
            stays.append(animation.info["duration"])
        return np.stack(frames), stays, animation.info["loop"]


@pytest.mark.parametrize("name", ["new/a.png", "a.apng", "a.APNG"])
def test_png_holds_the_frames_exactly(tmp_path: Path, name: str) -> None:
    frames = RNG.integers(0, 256, (5, 13, 17, 3), dtype=np.uint8)
    save_animation(frames, tmp_path / name, frame_ms=70)
    read_frames, stays, loop = read(tmp_path / name)
    np.testing.assert_array_equal(read_frames, frames)
    assert (stays, loop) == ([70] * 5, 0)
    assert len(list((tmp_path / name).parent.iterdir())) == 1


def test_gif_keeps_every_grey(tmp_path: Path) -> None:
    grey = np.stack([np.roll(np.arange(256, dtype=np.uint8).reshape(16, 16), step) for step in range(4)])
    frames = np.repeat(grey[..., None], 3, axis=3)
    save_animation(frames, tmp_path / "a.gif")
    read_frames, stays, loop = read(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_frames, frames)
    assert (stays, loop) == ([100] * 4, 0)


def test_gif_comes_close_to_colours_that_do_not_fit_and_never_flickers(tmp_path: Path) -> None:
    """A ramp of 4,096 colours lies still while other parts of the picture change."""
    red, blue = np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 4))
    ramp = np.stack([red, (red + blue) // 2, blue], axis=-1).astype(np.uint8)
    frames = np.zeros((6, 64, 80, 3), dtype=np.uint8)
    frames[:, :, :64] = ramp
    for number in range(6):
        frames[number, number * 10 :, 64:] = (40 * number, 255 - 40 * number, 30)
    save_animation(frames, tmp_path / "a.gif", frame_ms=40)
    read_frames, stays, _ = read(tmp_path / "a.gif")
    assert read_frames.shape == frames.shape
    assert stays == [40] * 6
    assert (read_frames[:, :, :64] == read_frames[0, :, :64]).all()
    difference = np.abs(read_frames.astype(int) - frames)
    assert difference.mean() < 5
    assert difference.max() < 40


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_a_repeated_frame_stays_longer(tmp_path: Path, name: str) -> None:
    frames = np.zeros((4, 6, 8, 3), dtype=np.uint8)
    frames[3:] = 255
    save_animation(frames, tmp_path / name, frame_ms=50)
    read_frames, stays, _ = read(tmp_path / name)
    assert sum(stays) == 200
    assert stays[-1] == 50
    assert read_frames[-1].min() == 255
    assert read_frames[:-1].max() == 0


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_animation(np.zeros((2, 2, 2, 3), dtype=np.uint8), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3)),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((2, 0, 4, 3), np.uint8),
    ],
)
def test_refuses_other_frames(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 of shape \(N, H, W, 3\) with N of at least 2, got"):
        save_animation(bad, tmp_path / "a.gif")


def test_refuses_other_suffixes_and_times(tmp_path: Path) -> None:
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"suffix of the animation must be one of '.gif', '.png', '.apng', got '.mp4'"):
        save_animation(frames, tmp_path / "a.mp4")
    for frame_ms in (0, 10, 25, 65540):
        with pytest.raises(ValueError, match=f"frame_ms must be a multiple of 10 from 20 to 65530, got {frame_ms}"):
            save_animation(frames, tmp_path / "a.gif", frame_ms)
    assert list(tmp_path.iterdir()) == []
