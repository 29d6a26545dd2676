import numpy as np
import pytest

from unoise_monai.phantoms.shapes import Ellipsoid
from unoise_monai.phantoms.vessels import (
    MAX_RADIUS_MM,
    MIN_RADIUS_MM,
    STEP_MM,
    TIGHTEST_BEND_MM,
    Segment,
    branch_angles,
    branch_radii,
    random_vessels,
    smooth_course,
)

SCALE = 0.8
BRAIN = Ellipsoid(SCALE * np.array([0.0, -12, 27]), SCALE * np.array([66.0, 80, 62]))


@pytest.fixture(scope="module", params=range(3))
def vessels(request: pytest.FixtureRequest) -> list[Segment]:
    return random_vessels(np.random.default_rng(request.param), SCALE, BRAIN)


def branches(vessels: list[Segment], parent: int) -> list[Segment]:
    return [part for part in vessels if part.parent == parent and not part.communicating]


def test_radii_are_those_of_arteries_and_never_grow(vessels: list[Segment]) -> None:
    radii = np.concatenate([part.radii for part in vessels])
    assert radii.min() >= MIN_RADIUS_MM
    assert MAX_RADIUS_MM >= radii.max() > 2.3
    assert radii.min() < 0.35
    assert all((np.diff(part.radii) <= 0).all() for part in vessels)


def test_every_segment_starts_where_its_parent_ends(vessels: list[Segment]) -> None:
    entries = [part for part in vessels if part.parent < 0]
    assert 3 <= len(entries) <= 7
    for part in entries:
        assert part.points[0, 2] == pytest.approx(-75 * SCALE)
        assert part.transit[0] == 0
    for index, part in enumerate(vessels):
        if part.parent >= 0:
            assert part.parent < index
            np.testing.assert_array_equal(part.points[0], vessels[part.parent].points[-1])
            assert part.transit[0] == vessels[part.parent].transit[-1]


def test_branches_keep_murrays_law(vessels: list[Segment]) -> None:
    forks = 0
    for index, parent in enumerate(vessels):
        children = branches(vessels, index)
        assert len(children) <= 2
        cubes = sum(child.radii[0] ** 3 for child in children)
        if len(children) == 2:
            forks += 1
            assert cubes == pytest.approx(parent.radii[-1] ** 3, rel=1e-9)
        elif children:
            # The other branch is too thin to be drawn, or left the brain at once.
            assert cubes < parent.radii[-1] ** 3
    assert forks > 20


def test_transit_is_path_length_over_radius(vessels: list[Segment]) -> None:
    for part in vessels:
        steps = np.linalg.norm(np.diff(part.points, axis=0), axis=1)
        np.testing.assert_allclose(np.diff(part.transit), steps / part.radii[1:])


def test_lines_are_close_set_and_branches_bend_gently(vessels: list[Segment]) -> None:
    trunk_ends = {part.parent for part in vessels if part.communicating} | {-1}
    checked = 0
    for part in vessels:
        moves = np.diff(part.points, axis=0)
        steps = np.linalg.norm(moves, axis=1)
        assert steps.max() < 1.5 * STEP_MM
        if part.radii[0] < 0.8 and not part.communicating and part.parent not in trunk_ends:
            cosines = (moves[1:] * moves[:-1]).sum(axis=1) / (steps[1:] * steps[:-1])
            assert np.arccos(np.clip(cosines, -1, 1)).max() <= 1.01 * STEP_MM / TIGHTEST_BEND_MM
            checked += 1
    assert checked > 20


def test_branches_end_inside_the_brain(vessels: list[Segment]) -> None:
    twigs = [part for part in vessels if part.parent >= 0 and not part.communicating]
    ends = np.array([part.points[-1] for part in twigs])
    assert BRAIN.inside(ends, np.full(len(ends), STEP_MM)).all()


def test_the_circle_links_the_carotids_with_each_other_and_with_the_back() -> None:
    arcs = 0
    for seed in range(10):
        vessels = random_vessels(np.random.default_rng(seed), SCALE, BRAIN)
        for part in vessels:
            if part.communicating:
                arcs += 1
                assert (
                    min(np.linalg.norm(part.points[-1] - other.points[-1]) for other in vessels if other is not part)
                    == 0
                )
    assert 10 < arcs <= 30


def test_the_same_generator_draws_the_same_vessels() -> None:
    first, again, other = (random_vessels(np.random.default_rng(seed), SCALE, BRAIN) for seed in (5, 5, 6))
    assert len(first) == len(again)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.points, two.points)
    assert not np.array_equal(first[0].points, other[0].points)


def test_the_size_of_the_head_leaves_the_calibres() -> None:
    small, large = (random_vessels(np.random.default_rng(1), scale, BRAIN)[0] for scale in (0.5, 1.0))
    assert small.radii[0] == large.radii[0]
    np.testing.assert_allclose(2 * small.points[[0, -1]], large.points[[0, -1]])


def test_branch_radii_and_angles_are_murrays() -> None:
    first, second = branch_radii(2.0, 0.7)
    assert first**3 + second**3 == pytest.approx(8)
    assert first**3 == pytest.approx(0.7 * 8)
    # Equal branches leave by 37.5 degrees each; a large branch goes straight on and a small one leaves at 90 degrees.
    equal = branch_angles(1.0, 0.5 ** (1 / 3), 0.5 ** (1 / 3))
    np.testing.assert_allclose(np.rad2deg(equal), 37.47, atol=0.01)
    straight, side = branch_angles(1.0, *branch_radii(1.0, 1 - 1e-9))
    assert np.rad2deg(straight) < 1
    assert np.rad2deg(side) == pytest.approx(90, abs=1)


def test_branch_angles_balance_the_pulls_of_the_vessels() -> None:
    # The minimum of the vessels' total volume: the directions, weighted by their cross-sections, add up to nothing.
    first, second = branch_radii(1.3, 0.8)
    one, two = branch_angles(1.3, first, second)
    assert first**2 * np.cos(one) + second**2 * np.cos(two) == pytest.approx(1.3**2)
    assert first**2 * np.sin(one) == pytest.approx(second**2 * np.sin(two))


def test_smooth_course_keeps_its_ends_and_is_evenly_set() -> None:
    corner = np.array([[0.0, 0, 0], [30, 0, 0], [30, 30, 0]])
    line = smooth_course(corner)
    np.testing.assert_array_equal(line[[0, -1]], corner[[0, 2]])
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    np.testing.assert_allclose(steps, STEP_MM, rtol=0.05)
    # Chaikin's curve about a corner is the parabola that touches its sides at their middles.
    t = np.linspace(0, 1, 201)[:, None]
    parabola = (1 - t) ** 2 * [15, 0, 0] + 2 * t * (1 - t) * corner[1] + t**2 * [30, 15, 0]
    bend = line[(line[:, 0] > 15) & (line[:, 1] < 15)]
    assert np.linalg.norm(bend[:, None] - parabola, axis=2).min(axis=1).max() < 0.15
