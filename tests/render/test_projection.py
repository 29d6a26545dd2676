"""Projections against plain loops over the rays."""

import numpy as np
import pytest

from unoise_monai.render.canvas import display_slice
from unoise_monai.render.mip import project, project_at_brightest, silhouettes, slab

rng = np.random.default_rng(1)
IMAGE = rng.integers(0, 5, (4, 5, 6)).astype(np.int16)  # few values, so that many voxels of a ray are equally bright
SHARES = rng.random((4, 5, 6), dtype=np.float32)


def rays(axis: int, shape: tuple[int, ...]) -> list[tuple[tuple[int, int], list[tuple[int, int, int]]]]:
    """Each pixel, as ``display_slice`` lays it out, with the voxels of its ray."""
    indices = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        indices[index] = index
    pictures = [display_slice(indices, axis, depth) for depth in range(shape[axis])]
    pixels = np.ndindex(*pictures[0].shape)
    return [((row, column), [picture[row, column] for picture in pictures]) for row, column in pixels]


@pytest.mark.parametrize("axis", range(3))
def test_projection_takes_the_maximum_of_each_ray(axis: int) -> None:
    shown = project(IMAGE, axis)
    for pixel, voxels in rays(axis, IMAGE.shape):
        assert shown[pixel] == max(IMAGE[voxel] for voxel in voxels)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("order", ["C", "F", "flipped"])
def test_value_of_the_brightest_voxel_the_highest_of_equals(axis: int, order: str) -> None:
    image = IMAGE[::-1].copy(order="F")[::-1] if order == "flipped" else np.asarray(IMAGE, order=order)
    shown = project_at_brightest(SHARES, image, axis)
    assert shown.dtype == SHARES.dtype
    for pixel, voxels in rays(axis, IMAGE.shape):
        brightest = max(IMAGE[voxel] for voxel in voxels)
        assert shown[pixel] == max(SHARES[voxel] for voxel in voxels if IMAGE[voxel] == brightest)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("classes", [[], [1], [1, 2], [2, 7]])
def test_silhouette_of_each_class_present(axis: int, classes: list[int]) -> None:
    segmentation = np.zeros((4, 5, 6), dtype=np.int64)
    segmentation[1:3, 1:4, 2:5] = np.random.default_rng(2).choice([0, *classes], (2, 3, 3))
    shadows = silhouettes(segmentation, axis)
    assert len(shadows) == len(classes)
    for value, shadow in zip(classes, shadows, strict=True):
        for pixel, voxels in rays(axis, segmentation.shape):
            assert shadow[pixel] == any(segmentation[voxel] == value for voxel in voxels)


@pytest.mark.parametrize(
    ("thickness_mm", "centre", "expected"),
    [
        (6, 10, (9, 12)),
        (6, 10.4, (9, 12)),
        (8, 10.5, (9, 13)),
        (6, 0, (0, 3)),
        (6, 19, (17, 20)),
        (0.1, 10, (10, 11)),
        (1000, 3, (0, 20)),
    ],
)
def test_slab_is_centred_and_stays_inside(thickness_mm: float, centre: float, expected: tuple[int, int]) -> None:
    assert slab(20, 2.0, thickness_mm, centre) == slice(*expected)
