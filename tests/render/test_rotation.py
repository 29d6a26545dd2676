"""A rotating MIP: the patient the right way round, in proportion, and what the animation's file holds."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unoise_monai.render.canvas import bar_colours, blend, grey_levels, to_canonical
from unoise_monai.render.mip import project, project_at_brightest, rotating_mip, save_animation, view_letters
from unoise_monai.render.panels import BAR_WIDTH, GAP, TITLE_HEIGHT, Panel, draw_panels

SHAPE = (14, 12, 10)
SPACING_MM = (1.0, 1.5, 3.0)
ANGIOGRAM = Path(__file__).parents[2].parent / "shared" / "data" / "tof_mra" / "chris_MRA.nii.gz"


def inner(frames: np.ndarray) -> np.ndarray:
    """The pictures without their titles."""
    return frames[:, GAP + TITLE_HEIGHT : -GAP, GAP:-GAP]


def centre_of(picture: np.ndarray) -> tuple[float, float]:
    """Row and column, 0 to 1, of what is bright, letters left out."""
    height, width = picture.shape[:2]
    bright = picture.min(axis=2) > 127
    bright[: height // 8] = bright[-height // 8 :] = False
    bright[:, : width // 12] = bright[:, -width // 12 :] = False
    rows, columns = np.nonzero(bright)
    return rows.mean() / height, columns.mean() / width


def test_frames_are_pictures_of_one_size() -> None:
    volume = np.random.default_rng(0).random(SHAPE)
    frames = rotating_mip(volume, SPACING_MM, frames=5, longest=200)
    assert frames.dtype == np.uint8
    # 14 mm by 18 mm have a diagonal of 22.8 mm, here 24 voxels of 1 mm; 10 voxels of 3 mm are the longest side.
    assert inner(frames).shape == (5, 200, 200 * 24 // 30, 3)


@pytest.mark.parametrize(("right", "front", "phase"), [(18, 9, 90), (9, 18, 0)])
def test_a_marker_goes_round(right: int, front: int, phase: int) -> None:
    """At the patient's right: on the left from the front, in the middle from the left and the right. At the front: on
    the left from the patient's left, which is the second of four views."""
    volume = np.zeros((21, 21, 21))
    volume[right : right + 2 + (right == 9), front : front + 2 + (front == 9), 13:16] = 1
    frames = inner(rotating_mip(volume, (1.0, 1.0, 1.0), frames=8, longest=240, window=(0, 1)))
    rows, columns = zip(*map(centre_of, frames), strict=True)
    assert max(rows) - min(rows) < 0.02
    assert rows[0] == pytest.approx((21 - 14.5) / 21, abs=0.02)
    # 8.5 voxels from the axis, of 31 that hold the diagonal of 29.7.
    expected = 0.5 - 8.5 / 31 * np.sin(np.radians(np.arange(0, 360, 45) + phase))
    np.testing.assert_allclose(columns, expected, atol=0.01)


def test_a_cube_in_mm_is_a_square_from_four_sides() -> None:
    """12 mm a side in voxels of 1 x 1.5 x 3 mm."""
    volume = np.zeros((20, 16, 10))
    volume[4:16, 4:12, 3:7] = 1
    frames = inner(rotating_mip(volume, SPACING_MM, frames=4, longest=300, window=(0, 1)))
    pixel_mm = frames.shape[1] / 30
    for frame in frames[:, 30:-30, 30:-30]:
        rows, columns = np.nonzero(frame[..., 0] > 127)
        assert np.ptp(rows) + 1 == pytest.approx(12 * pixel_mm, rel=0.04)
        assert np.ptp(columns) + 1 == pytest.approx(12 * pixel_mm, rel=0.04)


@pytest.mark.parametrize("style", ["colour", "red"])
def test_first_frame_is_the_coronal_projection_with_the_importance_of_its_brightest_voxels(style: str) -> None:
    rng = np.random.default_rng(1)
    volume, importance = rng.random((16, 10, 12)), rng.random((16, 10, 12))
    spacing_mm = (1.0, 1.0, 2.0)
    frame = rotating_mip(volume, spacing_mm, 1, 2, importance, (0.5, 1), style, 0.2, longest=200)[0]
    # 16 mm by 10 mm have a diagonal of 18.9 mm, here 20 pixels: two to the left and two to the right of the volume.
    coronal = np.pad(grey_levels(project(volume, 1), (0.5, 1)), ((0, 0), (2, 2)))
    shares = np.pad(project_at_brightest(importance, volume, 1), ((0, 0), (2, 2)))
    viewer, letters = view_letters(0)
    panel = Panel(blend(coronal, shares, 0.2, style), f"from {viewer}, 0°")
    bar = bar_colours(0.2, style)
    expected = draw_panels([panel], (2.0, 1.0), letters, bar, "importance, 0 to 1", 200)
    assert frame.shape[1] > GAP + BAR_WIDTH + 100
    np.testing.assert_allclose(frame.astype(int), expected, atol=1)


def test_the_window_is_found_once_for_all_frames() -> None:
    """A block is as bright beside the end of a bright rod as beside its length, which is a tenth of the picture."""
    volume = np.zeros((20, 20, 20))
    volume[:, :, 8:] = 50
    volume[2, :, 2:4] = 100
    front, side = inner(rotating_mip(volume, (1.0, 1.0, 1.0), frames=4, longest=200))[:2]
    assert front[70, 70, 0] == pytest.approx(127, abs=2)
    assert side[70, 70, 0] == front[70, 70, 0]


def test_a_large_volume_keeps_its_thin_vessels_in_small_pictures() -> None:
    """A vessel one voxel thin, of 240 across a picture of 60 pixels."""
    volume = np.zeros((120, 130, 240), dtype=np.uint8)
    volume[70, 50] = 100  # never as far from the axis as the letters
    volume[0, 0, 0] = 1
    frames = inner(rotating_mip(volume, (0.5, 0.5, 0.5), frames=6, longest=60, window=(0, 100)))
    for frame in frames:
        assert (frame[14:-14, 5:-5].max(axis=(1, 2)) > 100).all()  # between the letters, rows 1 to 10 and 47 to 55


def test_small_frames_have_room_for_the_longest_title() -> None:
    """Titles of one letter and of two, of one digit and of three."""
    frames = rotating_mip(np.random.default_rng(5).random(SHAPE), SPACING_MM, frames=8, longest=16)
    widest = max(np.ptp(np.flatnonzero(frame[: GAP + TITLE_HEIGHT - 2].any(axis=(0, 2)))) for frame in frames)
    assert frames.shape[2] > widest + 2 * GAP
    assert not frames[:, :, :GAP].any()
    assert not frames[:, :, -GAP:].any()


@pytest.mark.skipif(not ANGIOGRAM.exists(), reason="the real angiogram is not in ../shared/data")
def test_a_real_angiogram_keeps_its_arteries_from_every_side() -> None:
    image = nib.load(ANGIOGRAM)
    volume, spacing_mm = to_canonical(np.asarray(image.dataobj), image.affine)
    frames = inner(rotating_mip(volume, spacing_mm, frames=6, longest=200))
    bright = (frames[..., 0] > 200).mean(axis=(1, 2))
    assert bright.min() > 0.02
    assert bright.max() < 1.5 * bright.min()
    # The wide arteries come in from the neck: from the front and from the back there is more below than above.
    third = frames.shape[1] // 3
    assert all(frame[-third:].sum() > 1.5 * frame[:third].sum() for frame in frames[::3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"frames": 0}, "frames must be at least 1, got 0"), ({"longest": 8}, "longest must be at least 16, got 8")],
)
def test_refuses_bad_input(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotating_mip(np.random.default_rng(4).random(SHAPE), SPACING_MM, **changes)


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


@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 4, 4, 4), (1, 4, 4, 3), (2, 0, 4, 3), None])
def test_refuses_other_frames(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    bad = np.zeros((2, 4, 4, 3)) if shape is None else np.zeros(shape, np.uint8)
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
