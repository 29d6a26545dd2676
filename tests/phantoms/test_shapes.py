import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes

from unoise_monai.phantoms.abdomen import random_gut
from unoise_monai.phantoms.shapes import (
    Ellipsoid,
    Tube,
    grid_affine,
    paint,
    paint_cones,
    random_rotation,
    rotation,
    soften,
)


def test_paint_agrees_with_the_formula_on_every_voxel() -> None:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.array([3.0, -1, 2]), 40) @ np.diag([-2.0, 3.0, 2.5])
    affine[:3, 3] = [20, -25, -18]
    world = apply_affine(affine, np.argwhere(np.ones((20, 18, 16))))
    ball = Ellipsoid(np.array([1.0, -2, 3]), np.array([12.0, 7, 17]), rotation(np.array([0.0, 1, 1]), 30), power=2.4)
    volume = np.zeros((20, 18, 16), np.uint8)
    paint(volume, ball, 1, affine)
    np.testing.assert_array_equal(volume.ravel() == 1, ball.inside(world, np.zeros(len(world))))

    tube = random_gut(rng)
    paint(volume, tube, 2, affine)
    distances = np.linalg.norm(world[:, None] - tube.points, axis=2)
    np.testing.assert_array_equal(volume.ravel() == 2, (distances < tube.radii).any(axis=1))


def cones_by_hand(world: np.ndarray, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which piece holds which point of ``world`` (N, 3): (pieces, N), by one voxel and one piece after another."""
    inside = np.zeros((len(points), len(world)), bool)
    for n, ((start, end), (first, last)) in enumerate(zip(points, radii, strict=True)):
        for m, point in enumerate(world):
            along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
            inside[n, m] = np.linalg.norm(point - start - along * (end - start)) < first + along * (last - first)
    return inside


@pytest.mark.parametrize("left_handed", [False, True])
def test_paint_cones_agrees_with_the_formula_on_every_voxel(left_handed: bool) -> None:
    rng = np.random.default_rng(1)
    affine = grid_affine((15, 13, 11), (0.8, 1.1, 1.7), 35, left_handed)
    world = apply_affine(affine, np.argwhere(np.ones((15, 13, 11))))
    # Some pieces reach beyond the grid, one lies outside it.
    points = rng.uniform(-8, 8, (12, 1, 3)) + rng.uniform(-3, 3, (12, 2, 3))
    points[-1] += 100
    radii, values = rng.uniform(0.3, 3, (12, 2)), rng.permutation(np.arange(1, 13)).astype(np.uint8)
    volume = np.zeros((15, 13, 11), np.uint8)
    paint_cones(volume, points, radii, values, affine)
    expected = (cones_by_hand(world, points, radii) * values[:, None]).max(axis=0)
    np.testing.assert_array_equal(volume.ravel(), expected)
    assert len(np.unique(volume)) > 8


def test_a_shape_beyond_the_grid_paints_nothing() -> None:
    volume = np.zeros((4, 4, 4), np.uint8)
    paint(volume, Ellipsoid(np.full(3, 100.0), np.full(3, 5.0)), 1, grid_affine((4, 4, 4), (1, 1, 1), 0, False))
    assert not volume.any()


@pytest.mark.parametrize("left_handed", [False, True])
def test_grid_affine_centres_the_volume_with_its_spacing(left_handed: bool) -> None:
    affine = grid_affine((10, 12, 14), (1.5, 2.0, 3.0), 25, left_handed)
    np.testing.assert_allclose(voxel_sizes(affine), (1.5, 2.0, 3.0))
    np.testing.assert_allclose(apply_affine(affine, (4.5, 5.5, 6.5)), 0, atol=1e-12)
    assert np.sign(np.linalg.det(affine[:3, :3])) == (-1 if left_handed else 1)


def test_rotation_keeps_lengths_and_turns_by_its_angle() -> None:
    turned = rotation(np.array([0.0, 0.0, 2.0]), 90) @ [1.0, 0.0, 0.0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-12)
    some = random_rotation(np.random.default_rng(0), 30)
    np.testing.assert_allclose(some @ some.T, np.eye(3), atol=1e-12)


def test_gap_is_the_distance_of_the_surfaces() -> None:
    ball = Tube(np.zeros((1, 3)), np.array([2.0]))
    other = ball.moved(np.eye(3), np.array([7.0, 0.0, 0.0]))
    assert ball.gap(other) == pytest.approx(3)


def test_soften_averages_with_a_binomial_kernel() -> None:
    volume = np.zeros((5, 5, 5), np.float32)
    volume[2, 2, 2] = 64
    soft = soften(volume)
    assert soft[2, 2, 2] == 8
    assert soft[1, 2, 2] == 4
    assert soft[1, 1, 1] == 1
    assert soft.sum() == 64
