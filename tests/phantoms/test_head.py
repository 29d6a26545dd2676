import numpy as np
import pytest

from unoise_monai.phantoms.head import BRIGHT, Tissue, random_brightness, random_head, waves
from unoise_monai.phantoms.shapes import grid_affine, paint


def test_every_tissue_has_its_brightness_and_the_brain_is_the_unit() -> None:
    draws = np.array([random_brightness(np.random.default_rng(seed)) for seed in range(200)])
    low, high = np.array([kind.brightness for kind in Tissue]).T
    assert (draws >= low).all()
    assert (draws <= high).all()
    assert (draws[:, Tissue.BRAIN] == 1).all()
    assert (draws[:, Tissue.BONE] < draws[:, Tissue.MUSCLE]).all()
    assert all(kind.brightness[1] > 1.5 for kind in BRIGHT)


@pytest.mark.parametrize("scale", [0.6, 0.95])
def test_a_head_is_layered_from_the_air_to_the_brain(scale: float) -> None:
    brain, solids = random_head(np.random.default_rng(0), scale)
    size, affine = (260, 8, 8), grid_affine((260, 8, 8), (1.0, 1.0, 1.0), 0, False)
    affine[:3, 3] += brain.centre
    volume = np.zeros(size, np.uint8)
    for kind, shape in solids:
        paint(volume, shape, kind, affine)
    line = volume[:130, 4, 4]
    layers = [Tissue(kind) for kind in line[np.flatnonzero(np.diff(line, prepend=255))]]
    outer = [Tissue.AIR, Tissue.SKIN, Tissue.FAT, Tissue.MUSCLE, Tissue.BONE, Tissue.MARROW, Tissue.BONE]
    assert layers[:9] == [*outer, Tissue.FLUID, Tissue.BRAIN]
    assert (np.flatnonzero(line == Tissue.BRAIN)[0] - 130) == pytest.approx(-brain.radii[0], abs=1.5)


def test_a_scaled_head_holds_the_same_organs_nearer() -> None:
    (_, small), (_, large) = (random_head(np.random.default_rng(3), scale) for scale in (0.5, 1.0))
    assert [kind for kind, _ in small] == [kind for kind, _ in large]
    for (_, one), (_, two) in zip(small, large, strict=True):
        np.testing.assert_allclose(2 * one.centre, two.centre)


@pytest.mark.parametrize("left_handed", [False, True])
def test_waves_are_cosines_in_the_world(left_handed: bool) -> None:
    size = (9, 7, 8)
    affine = grid_affine(size, (1.0, 2.0, 3.0), 25, left_handed)
    field = waves(np.random.default_rng(1), size, affine, (5, 20), count=3)
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((3, 3))
    lengths = rng.uniform(5, 20, 3)
    phases = rng.uniform(0, 2 * np.pi, 3)
    expected = np.zeros(size)
    for index in np.ndindex(size):
        point = affine[:3, :3] @ index + affine[:3, 3]
        for direction, length, phase in zip(directions, lengths, phases, strict=True):
            along = direction @ point / np.linalg.norm(direction)
            expected[index] += np.sqrt(2 / 3) * np.cos(2 * np.pi * along / length + phase)
    np.testing.assert_allclose(field, expected, atol=1e-4)
    assert field.dtype == np.float32


def test_waves_have_mean_0_and_variance_1() -> None:
    affine = grid_affine((40, 40, 40), (2.0, 2.0, 2.0), 10, False)
    field = waves(np.random.default_rng(0), (40, 40, 40), affine, (3, 20), 16)
    assert abs(field.mean()) < 0.05
    assert field.std() == pytest.approx(1, abs=0.1)
