"""Synthetic abdominal CT with a target, landmarks and distractors."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from unoise_monai.phantoms.shapes import Array, Ellipsoid, Tube, grid_affine, paint, random_rotation, soften, unit

LONG_MM = 1e4
"""An endless radius that keeps the arithmetic finite."""
TUBE_POINTS = 64
"""Balls in a tube about 115 mm long: closer than 2 mm, so that the tube's surface is smooth to 0.1 mm."""


class Tissue(IntEnum):
    """What a point of the phantom is made of, and its mean intensity in the portal-venous phase, in HU."""

    hounsfield: int

    def __new__(cls, value: int, hounsfield: int) -> "Tissue":
        tissue = int.__new__(cls, value)
        tissue._value_, tissue.hounsfield = value, hounsfield
        return tissue

    AIR = 0, -1000
    FAT = 1, -100
    MUSCLE = 2, 55
    BONE = 3, 250
    DISC = 4, 90
    LUNG = 5, -820
    LIVER = 6, 110
    SPLEEN = 7, 125
    KIDNEY = 8, 170
    STOMACH_WALL = 9, 60
    STOMACH_FLUID = 10, 30
    AORTA = 11, 180
    SPLENIC_VEIN = 12, 165
    TARGET = 13, 95
    BOWEL = 14, 95


Solid = tuple[Tissue, Ellipsoid | Tube]
"""A tissue and its shape; in a list, each is painted over those before it."""


def random_hounsfield(rng: np.random.Generator) -> Array:
    """One patient's mean intensity of each tissue, in HU; the target and the bowel share theirs."""
    means = np.array([kind.hounsfield for kind in Tissue]) + rng.normal(0, 4, len(Tissue))
    means[Tissue.AIR] = Tissue.AIR.hounsfield
    means[Tissue.BOWEL] = means[Tissue.TARGET]
    return means


def random_gut(rng: np.random.Generator) -> Tube:
    """A curve of the one family of the target and the bowel loops, radii 7.5 to 11 mm.

    It runs along x from the thick to the thin end, bows towards +y, sways along z.
    """
    u = np.linspace(-0.5, 0.5, TUBE_POINTS)
    bow, sway, calibre, thin_end = rng.uniform([14, -8, 10, 0.75], [26, 8, 11, 0.85])
    points = np.stack([rng.uniform(85, 105) * u, bow * np.cos(np.pi * u), sway * np.sin(2 * np.pi * u)], axis=1)
    return Tube(points - [0, bow, 0], calibre * (1 - (1 - thin_end) * (u + 0.5)))


def target_axes(rng: np.random.Generator) -> Array:
    """How the target lies: from the right and below to the left and above, bowed to the front, a little tilted."""
    chord = unit(np.array([-0.96, -0.1, 0.26]))
    bow = unit(np.array([0.0, 1.0, 0.0]) - chord[1] * chord)
    return random_rotation(rng, 8) @ np.stack([chord, bow, np.cross(chord, bow)], axis=1)


def splenic_vein(rng: np.random.Generator, target: Tube, spleen: Ellipsoid) -> Tube:
    """A vein along the back and upper face of ``target``, from its neck to the hilum of the spleen."""
    radius = rng.uniform(4.0, 5.0)
    tangents = unit(np.gradient(target.points, axis=0))
    side = unit(np.array([0.0, -0.7, 0.7]) - (tangents @ [0.0, -0.7, 0.7])[:, None] * tangents)
    along = (target.points + (target.radii + radius)[:, None] * side)[TUBE_POINTS // 4 :]
    # The far end of this straight piece lies in the spleen, which is painted later.
    to_hilum = along[-1] + np.linspace(0, 0.7, 20)[1:, None] * (spleen.centre - along[-1])
    points = np.concatenate([along, to_hilum])
    return Tube(points, np.full(len(points), radius))


def random_bowel(rng: np.random.Generator, organs: list[Ellipsoid], cavity: Ellipsoid, tubes: list[Tube]) -> list[Tube]:
    """4 to 7 loops inside ``cavity``, outside ``organs``, and 6 mm from ``tubes`` (the target, its landmarks).

    On a collision a loop's place is drawn again, not its shape: crowding must not make the loops shorter or thinner
    than the target. Every other loop lies as the target does, and the first, where it can, at the target's height or
    above, so that neither direction nor height identifies the target.
    """
    loops: list[Tube] = []
    for index in range(int(rng.integers(4, 8))):
        shape = random_gut(rng)
        margins = shape.radii + 2
        for attempt in range(1000):
            axes = target_axes(rng) if index % 2 == 0 else random_rotation(rng, 180)
            # Where the abdomen is full, the search goes on further down.
            low, high = (0, 60) if index == 0 and attempt < 300 else (-50 - attempt / 5, 20)
            loop = shape.moved(axes, rng.uniform([-65, -10, low], [65, 62, high]))
            if (
                cavity.inside(loop.points, -margins).all()
                and not any(organ.inside(loop.points, margins).any() for organ in organs)
                and all(loop.gap(other) > 6 for other in tubes)
                and all(loop.gap(other) > 3 for other in loops)
            ):
                loops.append(loop)
                break
    return loops


def random_abdomen(rng: np.random.Generator) -> list[Solid]:
    """Draw one abdomen, about 240 mm wide and 184 mm deep, endless along z.

    Returns:
        Tissues and their shapes, in the order of painting, on a ground of :attr:`Tissue.FAT`.
    """

    def organ(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Ellipsoid:
        place = np.array(centre) + rng.uniform(-3, 3, 3)
        return Ellipsoid(place, np.array(radii) * rng.uniform(0.94, 1.06, 3), random_rotation(rng, 8))

    def column(x: float, y: float, radii: tuple[float, float], power: float = 2, outside: bool = False) -> Ellipsoid:
        return Ellipsoid(np.array([x, y, 0.0]), np.array([*radii, LONG_MM]), power=power, outside=outside)

    liver = [organ((63, -4, 46), (36, 56, 50)), organ((22, 38, 66), (46, 24, 26))]
    spleen = organ((-76, -24, 40), (20, 34, 36))
    kidneys = [organ((52, -36, -32), (21, 19, 44)), organ((-50, -36, -26), (21, 19, 42))]
    stomach = [organ((-42, 38, 56), (32, 23, 34)), organ((-14, 48, 38), (32, 15, 15))]
    fluid = [Ellipsoid(part.centre, part.radii - 4, part.axes) for part in stomach]
    lungs = [organ((56, -6, 165), (42, 54, 72)), organ((-54, -6, 165), (42, 54, 72))]
    spine = column(0, -44, (19, 16))
    back = [column(-31, -58, (19, 15)), column(31, -58, (19, 15))]
    levels = np.arange(-238.0, 239.0, 34.0) + rng.uniform(-17, 17)
    vertebrae = [Ellipsoid(np.array([0.0, -44.0, z]), np.array([20.0, 17.0, 15.0]), power=4) for z in levels]

    height = np.arange(-250.0, 250.0, 2.0)
    bend = 3 * np.sin(height / rng.uniform(40, 60) + rng.uniform(0, 6))
    aorta = Tube(
        np.stack([rng.uniform(-12, -7) + bend, np.full_like(height, -16), height], axis=1),
        np.full_like(height, rng.uniform(8.0, 9.5)),
    )
    target = random_gut(rng).moved(target_axes(rng), np.array([-3, 17, 4]) + rng.uniform(-3, 3, 3))
    vein = splenic_vein(rng, target, spleen)

    cavity = column(0, 0, (101, 74), power=2.4)
    obstacles = [*lungs, *liver, spleen, *kidneys, *stomach, *back, spine]
    loops = random_bowel(rng, obstacles, cavity, [target, vein, aorta])

    solids: list[Solid] = [(Tissue.LUNG, part) for part in lungs]
    solids += [(Tissue.STOMACH_WALL, part) for part in stomach]
    solids += [(Tissue.STOMACH_FLUID, part) for part in fluid]
    solids += [(Tissue.LIVER, part) for part in liver]
    solids += [(Tissue.KIDNEY, part) for part in kidneys]
    solids += [(Tissue.BOWEL, loop) for loop in loops]
    solids += [(Tissue.TARGET, target), (Tissue.SPLENIC_VEIN, vein), (Tissue.SPLEEN, spleen)]
    # The body wall comes after the organs and so cuts off what reaches beyond the cavity.
    solids += [
        (Tissue.MUSCLE, column(0, 0, (101, 74), power=2.4, outside=True)),
        (Tissue.FAT, column(0, 0, (109, 83), power=2.4, outside=True)),
        (Tissue.AIR, column(0, 0, (120, 92), power=2.4, outside=True)),
    ]
    solids += [(Tissue.MUSCLE, part) for part in back]
    solids += [(Tissue.BONE, column(0, -67, (6, 10))), (Tissue.DISC, spine)]
    solids += [(Tissue.BONE, body) for body in vertebrae]
    solids += [(Tissue.AORTA, aorta)]
    return solids


class Truth(IntEnum):
    """What a voxel means for telling the target."""

    OUTSIDE = 0
    TARGET = 1
    LANDMARK = 2
    DISTRACTOR = 3
    IRRELEVANT = 4


MEANING = {
    Tissue.AIR: Truth.OUTSIDE,
    Tissue.TARGET: Truth.TARGET,
    Tissue.AORTA: Truth.LANDMARK,
    Tissue.SPLENIC_VEIN: Truth.LANDMARK,
    Tissue.BOWEL: Truth.DISTRACTOR,
}


class Phantom(NamedTuple):
    """One synthetic scan, every array ``(X, Y, Z)``."""

    image: NDArray[np.int16]
    """Intensity: HU in CT, arbitrary units in MR."""
    label: NDArray[np.uint8]
    """1 in the target, 0 elsewhere."""
    truth: NDArray[np.uint8]
    """Values of :class:`Truth`."""
    affine: NDArray[np.float64]
    """Voxel indices to RAS millimetres, (4, 4), as nibabel has it."""


def abdomen_phantom(
    seed: int,
    size: Sequence[int] = (96, 96, 96),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise: float = 12.0,
) -> Phantom:
    """Draw one abdomen; the same ``seed`` gives the same anatomy in millimetres on any grid.

    The target, a curved tube along the splenic vein and over the aorta, shares its mean intensity and its family of
    calibres and curves with 4 to 7 bowel loops elsewhere. The whole moves by up to 10 mm, turns and scales a little,
    so that no fixed place identifies the target. A grid smaller than the body crops it around the middle.

    Args:
        seed: of the anatomy and of the noise, at least 0.
        size: voxels along each axis, at least 16.
        spacing_mm: voxel sizes.
        oblique_degrees: turn of the grid about a fixed oblique axis.
        left_handed: flip the first voxel axis, so that the affine's determinant is negative.
        noise: standard deviation of the noise in HU, part white, part correlated between neighbours.

    Raises:
        ValueError: when an option is not as described, negative or not finite.
    """
    check_options(seed, size, spacing_mm, oblique_degrees, noise)
    affine = grid_affine(size, spacing_mm, oblique_degrees, left_handed)
    # Two streams: the anatomy must not depend on how many voxels the noise fills.
    rng, noise_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    place = from_matvec(rng.uniform(0.94, 1.06) * random_rotation(rng, 4), rng.uniform(-10, 10, 3))
    tissue = np.full(tuple(size), Tissue.FAT, np.uint8)
    to_body = np.linalg.inv(place) @ affine
    for kind, shape in random_abdomen(rng):
        paint(tissue, shape, kind, to_body)

    hounsfield = soften(random_hounsfield(rng).astype(np.float32)[tissue])
    white, correlated = noise_rng.standard_normal((2, *size), dtype=np.float32)
    # soften() scales the deviation of white noise by sqrt(6) / 4 along each axis; 0.6 and 0.8 add up to one variance.
    hounsfield += np.float32(noise) * (0.6 * white + 0.8 * (4 / math.sqrt(6)) ** 3 * soften(correlated))
    image = np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16)
    truth = np.array([MEANING.get(kind, Truth.IRRELEVANT) for kind in Tissue], np.uint8)[tissue]
    return Phantom(image, (truth == Truth.TARGET).astype(np.uint8), truth, affine)


def check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_options(
    seed: int, size: Sequence[int], spacing_mm: Sequence[float], oblique_degrees: float, noise: float | None
) -> None:
    check_integer("seed", seed, 0)
    if np.shape(size) != (3,) or any(not isinstance(side, int | np.integer) or side < 16 for side in size):
        raise ValueError(f"size must be three integers of at least 16, got {size}")
    if np.shape(spacing_mm) != (3,) or any(not (math.isfinite(step) and step > 0) for step in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    if not math.isfinite(oblique_degrees):
        raise ValueError(f"oblique_degrees must be a finite number, got {oblique_degrees}")
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
