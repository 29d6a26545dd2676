"""Ellipsoids and tubes in millimetres, and their painting onto a voxel grid anywhere in space."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ellipsoid:
    """The points with ``sum(|axes.T @ (p - centre) / radii| ** power) < 1``, or all others where ``outside``.

    ``centre`` and ``radii`` are (3,) in mm; the columns of ``axes`` (3, 3) are the unit directions of the radii.
    """

    centre: Array
    radii: Array
    axes: Array = field(default_factory=lambda: np.eye(3))
    power: float = 2.0
    outside: bool = False

    def inside(self, points: Array, margins: Array) -> NDArray[np.bool_]:
        """Which ``points`` (N, 3) lie in the ellipsoid once each radius has grown by ``margins`` (N,) in mm."""
        radii = np.maximum(self.radii + margins[:, None], 1e-3)
        return (np.abs((points - self.centre) @ self.axes / radii) ** self.power).sum(axis=1) < 1


class Tube(NamedTuple):
    """A tube as close-set balls: ``points`` (N, 3) and ``radii`` (N,), in mm."""

    points: Array
    radii: Array

    def gap(self, other: "Tube") -> float:
        """The smallest distance from surface to surface, in mm; negative where the tubes overlap."""
        squares = (self.points**2).sum(axis=1)[:, None] + (other.points**2).sum(axis=1)
        distances = np.sqrt(np.maximum(squares - 2 * self.points @ other.points.T, 0))
        return float((distances - self.radii[:, None] - other.radii).min())

    def moved(self, axes: Array, shift: Array) -> "Tube":
        """The tube turned by the rotation ``axes`` (3, 3), then moved by ``shift`` (3,) in mm."""
        return Tube(self.points @ axes.T + shift, self.radii)


def unit(vectors: Array) -> Array:
    """Vectors ``(..., 3)`` of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rotation(axis: Array, degrees: float) -> Array:
    """The (3, 3) rotation about ``axis`` by ``degrees`` (Rodrigues)."""
    x, y, z = unit(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def random_rotation(rng: np.random.Generator, max_degrees: float) -> Array:
    """A (3, 3) rotation about a random axis, by at most ``max_degrees`` either way."""
    return rotation(rng.standard_normal(3), rng.uniform(-max_degrees, max_degrees))


def grid_affine(size: Sequence[int], spacing_mm: Sequence[float], oblique_degrees: float, left_handed: bool) -> Array:
    """Voxel indices to RAS millimetres, (4, 4), with the middle of the volume at the origin of the world."""
    steps = np.diag(np.array(spacing_mm, dtype=float) * ([-1, 1, 1] if left_handed else [1, 1, 1]))
    axes = rotation(np.array([1.0, 2.0, 3.0]), oblique_degrees) @ steps
    return np.asarray(from_matvec(axes, -axes @ ((np.array(size) - 1) / 2)))


def paint(volume: NDArray[np.uint8], shape: Ellipsoid | Tube, value: int, affine: Array) -> None:
    """Set ``value`` in the voxels of ``volume`` (X, Y, Z) whose centre lies in ``shape``, in place.

    ``affine`` (4, 4) takes voxel indices to the millimetres that ``shape`` is given in.
    """
    if isinstance(shape, Tube):
        for point, radius in zip(shape.points, shape.radii, strict=True):
            paint(volume, Ellipsoid(point, np.full(3, radius)), value, affine)
        return
    # In the coordinates q = to_ball @ voxel + offset the shape is the unit ball, which the box |q| <= 1 encloses.
    to_ball = shape.axes.T @ affine[:3, :3] / shape.radii[:, None]
    offset = shape.axes.T @ (affine[:3, 3] - shape.centre) / shape.radii
    to_voxel = np.linalg.inv(to_ball)
    middle, half = -to_voxel @ offset, np.abs(to_voxel).sum(axis=1)
    size = np.array(volume.shape)
    low = np.clip(np.ceil(middle - half), 0, size).astype(int)
    high = np.clip(np.floor(middle + half) + 1, 0, size).astype(int)
    if shape.outside:
        low, high = np.zeros(3, int), size
    if (low >= high).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    i, j, k = np.ogrid[box]
    total = np.float32(0)
    for row, start in zip(to_ball.astype(np.float32), offset.astype(np.float32), strict=True):
        total = total + np.abs(row[0] * i + row[1] * j + (row[2] * k + start)) ** shape.power
    volume[box][(total < 1) != shape.outside] = value


def paint_cones(
    volume: NDArray[np.uint8], points: Array, radii: Array, values: NDArray[np.uint8], affine: Array
) -> None:
    """Paint straight pieces of tapered tubes; where they overlap, the greatest value stays, whatever their order.

    Painted are the voxels whose centre is nearer to the piece's axis than the radius there, interpolated between the
    ends: balls at both ends and the cone between them.

    Args:
        volume: ``(X, Y, Z)``, changed in place.
        points, radii: at both ends of each piece, ``(N, 2, 3)`` and ``(N, 2)`` in mm.
        values: one a piece, ``(N,)``.
        affine: ``(4, 4)``, voxel indices to mm.
    """
    to_voxel = np.linalg.inv(affine)
    ends = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    reach = radii[:, :, None] * np.linalg.norm(to_voxel[:3, :3], axis=1)
    size = np.array(volume.shape)
    low = np.clip(np.ceil((ends - reach).min(axis=1)), 0, size).astype(int)
    high = np.clip(np.floor((ends + reach).max(axis=1)) + 1, 0, size).astype(int)
    for n in np.flatnonzero((low < high).all(axis=1)):
        box = tuple(slice(a, b) for a, b in zip(low[n], high[n], strict=True))
        axis = points[n, 1] - points[n, 0]
        # The last row goes from 0 to 1 along the piece, the others are mm from its start.
        rows = np.concatenate([np.eye(3), [axis / (axis @ axis)]])
        rows, offsets = rows @ affine[:3, :3], rows @ (affine[:3, :3] @ low[n] + affine[:3, 3] - points[n, 0])
        i, j, k = (part.astype(np.float32) for part in np.ogrid[tuple(map(slice, high[n] - low[n]))])
        *away, along = (
            row[0] * i + (row[1] * j + (row[2] * k + offset))
            for row, offset in zip(rows.astype(np.float32), offsets.astype(np.float32), strict=True)
        )
        np.clip(along, 0, 1, out=along)
        square = sum((part - np.float32(step) * along) ** 2 for part, step in zip(away, axis, strict=True))
        radius = np.float32(radii[n, 0]) + np.float32(radii[n, 1] - radii[n, 0]) * along
        np.maximum(volume[box], values[n] * (square < radius * radius), out=volume[box])


def soften(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average (X, Y, Z) with weights 1/4, 1/2, 1/4 along each axis, as a voxel mixes the tissues at an edge."""
    for axis in range(3):
        padded = np.pad(volume, [(int(other == axis),) * 2 for other in range(3)], mode="edge")
        before, here, after = (padded.take(range(k, k + volume.shape[axis]), axis) for k in range(3))
        volume = np.float32(0.25) * (before + after + here + here)
    return volume
