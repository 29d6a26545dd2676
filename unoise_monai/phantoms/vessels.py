"""Synthetic angiograms: trees of arteries in a head, with exact labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from unoise_monai.phantoms.abdomen import Phantom, Truth, check_options
from unoise_monai.phantoms.head import (
    BRIGHT,
    Tissue,
    Volume,
    inflow,
    random_brightness,
    random_head,
    random_look,
    rician,
    strip,
    waves,
)
from unoise_monai.phantoms.shapes import (
    Array,
    Ellipsoid,
    grid_affine,
    paint,
    paint_cones,
    random_rotation,
    soften,
    unit,
)

MIN_RADIUS_MM, MAX_RADIUS_MM = 0.3, 3.0
STEP_MM = 0.75
"""Between successive points of a centre line; the tightest bend then leaves its polygon by less than 0.02 mm."""
TIGHTEST_BEND_MM = 4.0
"""The smallest radius of curvature of a branch."""
TAPER_PER_MM = 0.004
"""The share of its radius that a vessel loses with each mm, to twigs too thin to be drawn."""

# Courses of the trunks of the right side in an adult, mm; the left side mirrors x.
CAROTID = (
    *((30, -12, -75), (31, -10, -45), (31, -8, -28), (28, -4, -23), (18, 6, -22)),
    *((14, 12, -17), (13, 20, -12), (12, 25, -6), (14, 18, -2), (11, 17, 3)),
)
MIDDLE_CEREBRAL = [(11, 17, 3), (16, 18, 5), (24, 17, 3), (32, 16, 4)]
ANTERIOR_CEREBRAL = [(11, 17, 3), (8, 20, 6), (4, 25, 6), (2.5, 28, 8)]
BASILAR = [(2, -16, -75), (3, -12, -45), (1, -4, -20), (0, 2, -8), (0, 4, 0)]
POSTERIOR_CEREBRAL = [(0, 4, 0), (6, 5, 2), (12, 0, 2), (15, -8, 2)]
TEMPORAL = [(52, -6, -75), (64, -2, -45), (73, 6, -15), (72, 14, 15), (66, 26, 40)]
OCCIPITAL = [(40, -50, -75), (50, -62, -45), (52, -75, -15), (46, -82, 20)]


class Segment(NamedTuple):
    """One vessel between two branchings, its N points about ``STEP_MM`` apart."""

    points: Array
    """Centre line, (N, 3) in mm."""
    radii: Array
    """(N,) in mm, never growing along the segment."""
    transit: Array
    """(N,) path length over radius, summed from where the blood entered: proportional to the time that it took."""
    parent: int
    """Index of the segment at whose end this one starts, -1 where it enters from below."""
    communicating: bool = False
    """Whether it is an arc of the circle of Willis, which links two segments and is no branch by Murray's law."""


def branch_radii(radius: float, share: float) -> tuple[float, float]:
    """The two branches of a vessel, in mm, so that their cubes add up to its own; the first takes ``share`` of it."""
    return radius * share ** (1 / 3), radius * (1 - share) ** (1 / 3)


def branch_angles(radius: float, first: float, second: float) -> tuple[float, float]:
    """The angles, in radians, by which branches of these radii leave the direction of their parent (minimum work)."""

    def angle(one: float, other: float) -> float:
        return math.acos(min(1.0, max(-1.0, (radius**4 + one**4 - other**4) / (2 * radius**2 * one**2))))

    return angle(first, second), angle(second, first)


def smooth_course(waypoints: Array) -> Array:
    """A smooth line past ``waypoints`` (N, 3) from the first to the last, its points ``STEP_MM`` apart (Chaikin)."""
    line = waypoints
    for _ in range(5):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.concatenate([line[:1], np.stack([near, far], axis=1).reshape(-1, 3), line[-1:]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    even = np.linspace(0, along[-1], max(2, round(along[-1] / STEP_MM) + 1))
    return np.stack([np.interp(even, along, line[:, axis]) for axis in range(3)], axis=1)


class VesselTree:
    """Grows segments, each from the end of another; ``segments`` holds them, parents first."""

    def __init__(self, rng: np.random.Generator, scale: float, brain: Ellipsoid) -> None:
        self.rng, self.scale, self.brain = rng, scale, brain
        self.tortuosity = rng.uniform(0.04, 0.1)
        self.segments: list[Segment] = []

    def end(self, index: int) -> tuple[Array, Array, float, float]:
        """Where segment ``index`` ends: point, direction, radius in mm, transit."""
        points, radii, transit, *_ = self.segments[index]
        return points[-1], unit(points[-1] - points[-2]), float(radii[-1]), float(transit[-1])

    def add(self, points: Array, radius: float, parent: int, communicating: bool = False) -> int:
        """Add a segment that tapers from ``radius`` along ``points``; returns its index."""
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        taper = np.exp(-TAPER_PER_MM * np.concatenate([[0], np.cumsum(steps)]))
        radii = np.maximum(radius * taper, MIN_RADIUS_MM)
        start = self.end(parent)[3] if parent >= 0 else 0.0
        transit = start + np.concatenate([[0], np.cumsum(steps / radii[1:])])
        self.segments.append(Segment(points, radii, transit, parent, communicating))
        return len(self.segments) - 1

    def trunk(self, course: Sequence[tuple[float, float, float]], side: int, radius: float, parent: int = -1) -> int:
        """Add a vessel of known course, its waypoints moved by 1 to 2 mm; returns its index."""
        waypoints = np.array(course) * self.scale * [side, 1, 1]
        waypoints[1:] += self.rng.normal(0, 1.5, (len(course) - 1, 3)) * self.scale
        if parent >= 0:
            waypoints[0] = self.end(parent)[0]
        return self.add(smooth_course(waypoints), radius, parent)

    def link(self, parent: int, other: int, radius: float) -> None:
        """Add an arc of the circle of Willis from the end of one segment to that of another."""
        start, goal = self.end(parent)[0], self.end(other)[0]
        bow = (start + goal) / 2 + self.rng.normal(0, 1.5, 3) * self.scale
        self.add(smooth_course(np.stack([start, bow, goal])), radius, parent, communicating=True)

    def walk(self, point: Array, direction: Array, radius: float, pull: Array) -> Array:
        """A random smooth line that tends towards ``pull`` and bends along the brain's border instead of leaving."""
        length = radius * self.rng.uniform(7, 16) + 4
        bend = np.zeros(3)
        line = [point]
        for _ in range(int(length / STEP_MM)):
            bend = 0.85 * bend + self.tortuosity * self.rng.standard_normal(3)
            offset = (point - self.brain.centre) @ self.brain.axes / self.brain.radii
            level = float(np.linalg.norm(offset))
            outward = unit(self.brain.axes @ (offset / self.brain.radii))
            away = 2 * max(0.0, level - 0.75) * max(0.0, float(direction @ outward))
            turn = bend + 0.04 * pull - away * outward
            turn -= (turn @ direction) * direction
            turn *= min(1.0, 1 / (TIGHTEST_BEND_MM * max(float(np.linalg.norm(turn)), 1e-9)))
            direction = unit(direction + STEP_MM * turn)
            point = point + STEP_MM * direction
            if level > 0.97:
                break
            line.append(point)
        return np.array(line)

    def branch(self, parent: int, pulls: tuple[Array, Array]) -> None:
        """Let the end of segment ``parent`` bifurcate, and its branches likewise, down to ``MIN_RADIUS_MM``."""
        point, direction, radius, _ = self.end(parent)
        radii = branch_radii(radius, self.rng.uniform(0.6, 0.93))
        # The branches lie in the plane of their parent and of the difference of their pulls, loosely.
        across = pulls[0] - pulls[1] + self.rng.normal(0, 0.7, 3)
        across = unit(across - (across @ direction) * direction)
        for child, angle, side, pull in zip(radii, branch_angles(radius, *radii), (1, -1), pulls, strict=True):
            if child < MIN_RADIUS_MM:
                continue
            leaving = np.cos(angle) * direction + side * np.sin(angle) * across
            line = self.walk(point, leaving, child, pull)
            if len(line) > 2:
                index = self.add(line, child, parent)
                if len(line) * STEP_MM > child * 7:
                    self.branch(index, (self.strayed(pull), self.strayed(pull)))

    def strayed(self, pull: Array) -> Array:
        return unit(pull + self.rng.normal(0, 0.5, 3))


def random_vessels(rng: np.random.Generator, scale: float, brain: Ellipsoid) -> list[Segment]:
    """Draw the arteries of one head: carotids and basilar artery, their branches, the circle of Willis, the scalp.

    Args:
        rng: source of all that varies.
        scale: size of the head, 1 in an adult; it moves and stretches the vessels but leaves their calibres.
        brain: where branches may grow; they end at its border.

    Returns:
        Segments, a parent before its branches; radii 0.3 to 3 mm.
    """
    tree = VesselTree(rng, scale, brain)
    anterior, posterior = [], []
    basilar = tree.trunk(BASILAR, 1, rng.uniform(1.8, 2.5))
    shares = rng.uniform(0.4, 0.6)
    for side, calibre in zip((1, -1), branch_radii(tree.end(basilar)[2], shares), strict=True):
        carotid = tree.trunk(CAROTID, side, rng.uniform(2.4, MAX_RADIUS_MM))
        middle, front = branch_radii(tree.end(carotid)[2], rng.uniform(0.55, 0.75))
        sylvian = tree.trunk(MIDDLE_CEREBRAL, side, middle, carotid)
        anterior.append(tree.trunk(ANTERIOR_CEREBRAL, side, front, carotid))
        posterior.append(tree.trunk(POSTERIOR_CEREBRAL, side, calibre, basilar))
        tree.branch(sylvian, (unit(np.array([0.4 * side, 0.2, 1.0])), unit(np.array([0.5 * side, -1.0, 0.5]))))
        tree.branch(anterior[-1], (np.array([0.0, 0.3, 0.95]), unit(np.array([0.1 * side, -0.5, 1.0]))))
        tree.branch(posterior[-1], (unit(np.array([0.2 * side, -1.0, 0.3])), unit(np.array([0.8 * side, -0.6, -0.1]))))
        if rng.random() < 0.7:
            tree.link(carotid, posterior[-1], rng.uniform(0.4, 0.8))
        for scalp in (TEMPORAL, OCCIPITAL):
            if rng.random() < 0.6:
                tree.trunk(scalp, side, rng.uniform(0.6, 1.3))
    if rng.random() < 0.8:
        tree.link(anterior[0], anterior[1], rng.uniform(0.5, 0.9))
    return tree.segments


SUBVOXELS = 3
"""Sub-voxels along each axis, whose share in vessels is the partial volume; odd, so that one is in the centre."""
SLAB = 32
"""How many planes of voxels are divided into sub-voxels at a time, which bounds the memory."""
STRIPPED_SHARE = 0.4
"""Share of the scans whose soft tissue is removed."""


def vessel_phantom(
    seed: int,
    size: Sequence[int] = (160, 192, 112),
    spacing_mm: Sequence[float] = (0.6, 0.6, 0.6),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise: float | None = None,
    stripped: bool | None = None,
) -> Phantom:
    """Draw one TOF-MRA; the same ``seed`` gives the same anatomy in millimetres on any grid.

    The grid is a slab around the circle of Willis. Heads are of 60 to 95 % of an adult's size, so that the default
    grid shows skull and scalp of most; it always crops the head above and below. Arteries of 0.3 to 3 mm radius enter
    from below. The label is exact: 1 where the voxel's centre lies in a vessel. In the image a voxel mixes blood and
    tissue by their shares, so that a vessel thinner than a voxel is faint; see `head.inflow` and `head.Look`.

    Args:
        seed: of anatomy, look and noise, at least 0.
        size, spacing_mm, oblique_degrees, left_handed: see `abdomen_phantom`.
        noise: standard deviation of the Rician noise in each channel, in the image's arbitrary unit, whose entering
            blood is 350 to 950; None draws it.
        stripped: whether the soft tissue is removed, as scanners and people do; None draws it for 40 % of the scans.

    Raises:
        ValueError: when an option is not as described, negative or not finite.
    """
    check_options(seed, size, spacing_mm, oblique_degrees, noise)
    affine = grid_affine(size, spacing_mm, oblique_degrees, left_handed)
    # Streams of their own: the anatomy must not depend on options, nor on how many voxels the noise fills.
    anatomy_rng, look_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    place = from_matvec(random_rotation(anatomy_rng, 10), anatomy_rng.uniform(-6, 6, 3))
    to_head = np.linalg.inv(place) @ affine
    scale = anatomy_rng.uniform(0.6, 0.95)
    brain, solids = random_head(anatomy_rng, scale)
    segments = random_vessels(anatomy_rng, scale, brain)

    look = random_look(look_rng)
    # Drawn whether or not it is asked for, so that what follows stays the same.
    drawn_stripped = bool(look_rng.random() < STRIPPED_SHARE)
    tissue = np.full(tuple(size), Tissue.AIR, np.uint8)
    for kind, shape in solids:
        paint(tissue, shape, kind, to_head)
    label, share, blood = paint_blood(segments, look.decay, size, to_head)

    patches = waves(look_rng, size, to_head, (10, 50))
    relative = random_brightness(look_rng).astype(np.float32)[tissue]
    relative *= 1 + np.float32(look.texture) * waves(look_rng, size, to_head, (3, 30), 16)
    relative *= np.where(tissue == Tissue.MARROW, np.clip(0.6 + 0.6 * patches, 0.1, 1.5), np.float32(1))
    image = look.blood / look.contrast * soften(relative) * (1 - share)
    image += look.blood * blood * np.maximum(0, 1 + np.float32(look.turbulence) * patches)
    image = (1 - look.blur) * image + look.blur * soften(image)
    image *= np.exp(np.float32(look.bias) * waves(look_rng, size, to_head, (120, 400), 4))
    image = image.astype(np.float32)
    image = rician(image, look.noise * look.blood / look.contrast if noise is None else noise, look.grain, noise_rng)
    if drawn_stripped if stripped is None else stripped:
        image = strip(image, share, patches, look)

    meaning = [Truth.DISTRACTOR if kind in BRIGHT else Truth.IRRELEVANT for kind in Tissue]
    meaning[Tissue.AIR] = Truth.OUTSIDE
    truth = np.where(label == 1, np.uint8(Truth.TARGET), np.array(meaning, np.uint8)[tissue])
    return Phantom(np.clip(np.rint(image), 0, 4095).astype(np.int16), label, truth, affine)


def paint_blood(
    segments: list[Segment], decay: float, size: Sequence[int], affine: Array
) -> tuple[NDArray[np.uint8], Volume, Volume]:
    """Vessels, in mm, on the voxel grid of an affine ``(4, 4)``.

    Returns:
        Three arrays ``(X, Y, Z)``: whether the voxel's centre lies in a vessel (0 or 1); the share of the voxel that
        lies in vessels; that share times the blood's brightness, see `inflow`, in steps of 1/255.
    """
    vessels = (
        np.concatenate([both_ends(segment.points) for segment in segments]),
        np.concatenate([both_ends(segment.radii) for segment in segments]),
        np.concatenate([np.rint(255 * inflow(segment.transit[1:], decay)) for segment in segments]).astype(np.uint8),
    )
    label = np.zeros(tuple(size), np.uint8)
    share, blood = np.zeros((2, *size), np.float32)
    for first in range(0, size[0], SLAB):
        slab = slice(first, min(first + SLAB, size[0]))
        to_voxel = from_matvec(np.diag([1 / SUBVOXELS] * 3), [(1 / SUBVOXELS - 1) / 2] * 3)
        to_voxel[0, 3] += first
        fine = np.zeros(SUBVOXELS * np.array([slab.stop - first, *size[1:]]), np.uint8)
        paint_cones(fine, *vessels, affine @ to_voxel)
        for i, j, k in np.ndindex(SUBVOXELS, SUBVOXELS, SUBVOXELS):
            view = fine[i::SUBVOXELS, j::SUBVOXELS, k::SUBVOXELS]
            share[slab] += view > 0
            blood[slab] += view
        middle = SUBVOXELS // 2
        label[slab] = fine[middle::SUBVOXELS, middle::SUBVOXELS, middle::SUBVOXELS] > 0
    return label, share / SUBVOXELS**3, blood / (255 * SUBVOXELS**3)


def both_ends(values: Array) -> Array:
    """Of each piece between successive points the value at its start and at its end: (N, ...) to (N - 1, 2, ...)."""
    return np.stack([values[:-1], values[1:]], axis=1)
