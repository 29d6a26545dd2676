"""Rays from any side: against a loop over voxels, the plain projections, and the patient's own directions."""

from itertools import product

import numpy as np
import pytest

from unoise_monai.render.mip import Turn, project, project_at_brightest, turned_mips, view_letters

SPACING_MM = (0.7, 1.1, 2.5)
TOWARDS = {
    letter: sign * np.eye(3)[axis]
    for axis, pair in enumerate(("RL", "AP", "SI"))
    for letter, sign in zip(pair, (1, -1), strict=True)
}
RIGHT_QUARTERS = (0, 90, 180, 270)


def camera(angle: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the picture's right and top point in the patient, R, A, S, as the docstring of ``rotating_mip`` tells."""
    start, quarter = {0: "AI", 1: "IL", 2: "AL"}[axis]
    viewer = np.cos(np.radians(angle)) * TOWARDS[start] + np.sin(np.radians(angle)) * TOWARDS[quarter]
    if axis == 0:
        return TOWARDS["L"], np.cross(viewer, TOWARDS["L"])
    up = TOWARDS["A" if axis == 1 else "S"]
    return np.cross(up, viewer), up


def naive(
    image: np.ndarray, importance: np.ndarray, angle: float, axis: int, like: Turn
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel and voxel by voxel: the brightest voxel whose box the pixel's ray crosses."""
    rows, columns = like.peaks.shape[1:]
    right, up = camera(angle, axis)
    peaks, shares = np.full((rows, columns), np.nan), np.zeros((rows, columns))
    for row, column in product(range(rows), range(columns)):
        at_right = (column - (columns - 1) / 2) * like.pixel_mm[1]
        at_top = ((rows - 1) / 2 - row) * like.pixel_mm[0]
        for voxel in product(*map(range, image.shape)):
            centre = (np.array(voxel) - (np.array(image.shape) - 1) / 2) * SPACING_MM
            hit = all(
                abs(centre @ direction - at) < np.abs(direction) @ SPACING_MM / 2
                for direction, at in ((right, at_right), (up, at_top))
            )
            if hit and not peaks[row, column] >= image[voxel]:
                peaks[row, column], shares[row, column] = image[voxel], importance[voxel]
    return peaks, shares


@pytest.mark.parametrize("axis", range(3))
def test_agrees_with_a_loop_over_voxels(axis: int) -> None:
    rng = np.random.default_rng(axis)
    image = rng.permutation(60).reshape(3, 4, 5).astype(np.float32) - 30
    importance = rng.random(image.shape, dtype=np.float32)
    angles = (7.3, 101.9, 200.1, 333.3)
    turn = turned_mips(image, SPACING_MM, angles, axis, importance)
    assert turn.shares is not None
    for number, angle in enumerate(angles):
        peaks, shares = naive(image, importance, angle, axis, turn)
        np.testing.assert_array_equal(turn.peaks[number], peaks)
        np.testing.assert_array_equal(turn.shares[number], shares)


def inside(picture: np.ndarray) -> np.ndarray:
    """Without the rows and columns whose rays miss the volume."""
    hit = np.isfinite(picture)
    return picture[hit.any(axis=1)][:, hit.any(axis=0)]


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 5, 4), (6, 4, 5), (1, 7, 2)])
def test_quarters_are_the_plain_projections(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    volume = rng.random(shape, dtype=np.float32)
    sagittal, coronal, axial = (project(volume, axis) for axis in range(3))
    expected = {
        0: (coronal, axial, coronal[::-1], axial[::-1]),
        1: (axial, sagittal.T[:, ::-1], axial[:, ::-1], sagittal.T),
        2: (coronal, sagittal, coronal[:, ::-1], sagittal[:, ::-1]),
    }
    for axis, pictures in expected.items():
        turn = turned_mips(volume, (1.0, 1.0, 1.0), RIGHT_QUARTERS, axis)
        for turned, picture in zip(turn.peaks, pictures, strict=True):
            np.testing.assert_array_equal(inside(turned), picture)


def test_of_equally_bright_voxels_the_most_important_counts() -> None:
    rng = np.random.default_rng(2)
    volume = rng.integers(0, 3, (5, 7, 4))
    importance = rng.random(volume.shape, dtype=np.float32)
    turn = turned_mips(volume, (1.0, 1.0, 1.0), (0, 90), 2, importance)
    assert turn.shares is not None
    for number, axis in enumerate((1, 0)):
        columns = np.isfinite(turn.peaks[number]).all(axis=0)
        expected = project_at_brightest(importance, volume, axis)
        np.testing.assert_array_equal(turn.shares[number][:, columns], expected)


def test_a_wide_pixel_shows_the_brightest_voxel_of_its_block() -> None:
    volume = np.random.default_rng(3).random((8, 8, 9), dtype=np.float32) - 1  # below 0, as in CT
    importance = np.random.default_rng(4).random(volume.shape, dtype=np.float32)
    turn = turned_mips(volume, (1.0, 1.0, 1.0), (0,), 2, importance, pixel_mm=2.2)
    assert turn.pixel_mm == (2, 2)
    assert turn.shares is not None
    plain, shares = project(volume, 1), project_at_brightest(importance, volume, 1)
    # Nine rows from the head make four blocks and one row over.
    blocks = [(slice(top, top + 2), slice(left, left + 2)) for top in range(0, 9, 2) for left in range(0, 8, 2)]
    columns = np.isfinite(turn.peaks[0]).all(axis=0)
    assert columns.sum() == 4
    np.testing.assert_array_equal(turn.peaks[0][:, columns].ravel(), [plain[block].max() for block in blocks])
    expected = [shares[block].ravel()[plain[block].argmax()] for block in blocks]
    np.testing.assert_array_equal(turn.shares[0][:, columns].ravel(), expected)


@pytest.mark.parametrize("pixel_mm", [0, 1.6, 4])
@pytest.mark.parametrize("axis", range(3))
def test_a_single_voxel_is_as_bright_from_every_side(axis: int, pixel_mm: float) -> None:
    volume = np.zeros((9, 8, 10), dtype=np.uint8)
    for voxel in ((2, 6, 3), (8, 7, 9), (0, 0, 0)):
        lonely = volume.copy()
        lonely[voxel] = 200
        turn = turned_mips(lonely, (0.5, 0.8, 0.6), range(0, 360, 7), axis, pixel_mm=pixel_mm)
        assert (np.nanmax(turn.peaks, axis=(1, 2)) == 200).all()


def test_the_frame_holds_the_volume_from_every_side() -> None:
    turn = turned_mips(np.ones((20, 30, 4)), (1.0, 0.5, 3.0), range(0, 360, 15))
    assert turn.pixel_mm == (3.0, 0.5)
    assert turn.peaks.shape == (24, 4, 50)  # 20 mm by 15 mm have a diagonal of 25 mm
    for number, angle in enumerate(np.radians(range(0, 360, 15))):
        shadow_mm = 20 * abs(np.cos(angle)) + 15 * abs(np.sin(angle))
        assert np.isfinite(turn.peaks[number, 0]).sum() * 0.5 == pytest.approx(shadow_mm, abs=0.5)


def test_what_hides_behind_a_brighter_wall_is_seen_from_the_side() -> None:
    volume = np.zeros((11, 11, 3), dtype=np.float32)
    volume[:, 9] = 2  # in front
    volume[5, 4] = 1
    importance = np.zeros_like(volume)
    importance[5, 4] = 1
    turn = turned_mips(volume, (1.0, 1.0, 1.0), RIGHT_QUARTERS, 2, importance)
    assert turn.shares is not None
    seen = turn.shares.max(axis=(1, 2)).tolist()
    assert seen == [0, 1, 0, 1]
    assert ((turn.peaks == 1) == (turn.shares == 1)).all()


@pytest.mark.parametrize(
    ("axis", "angle", "viewer", "edges"),
    [
        (2, 0, "A", "R L S I"),
        (2, 30, "AL", "RA LP S I"),
        (2, 45, "LA", "RA LP S I"),
        (2, 60, "LA", "AR PL S I"),
        (2, 90, "L", "A P S I"),
        (2, 180, "P", "L R S I"),
        (2, 270, "R", "P A S I"),
        (0, 0, "A", "R L S I"),
        (0, 90, "I", "R L A P"),
        (0, 270, "S", "R L P A"),
        (1, 0, "I", "R L A P"),
        (1, 90, "L", "I S A P"),
        (1, 180, "S", "L R A P"),
    ],
)
def test_letters(axis: int, angle: float, viewer: str, edges: str) -> None:
    found, letters = view_letters(angle, axis)
    assert found == viewer
    assert " ".join(letters[edge] for edge in ("left", "right", "top", "bottom")) == edges


@pytest.mark.parametrize("axis", range(3))
def test_a_marker_lies_where_the_letters_say(axis: int) -> None:
    for letter, direction in TOWARDS.items():
        volume = np.zeros((15, 15, 15), dtype=np.uint8)
        volume[tuple((7 + 6 * direction).astype(int))] = 1
        angles = range(0, 360, 20)
        turn = turned_mips(volume, (1.0, 1.0, 1.0), angles, axis)
        for angle, picture in zip(angles, turn.peaks, strict=True):
            (rows, columns), (height, width) = np.nonzero(picture == 1), picture.shape
            right, down = columns.mean() - (width - 1) / 2, rows.mean() - (height - 1) / 2
            from_centre = {"left": -right, "right": right, "top": -down, "bottom": down}
            viewer, letters = view_letters(angle, axis)
            for edge, away in from_centre.items():
                assert (letter in letters[edge]) == (away > 0.6)
            if viewer == letter:
                assert max(from_centre.values()) <= 0.5
