"""Supervoxels: numbered without gaps, of the size asked for, along edges, within labels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unoise_monai.attribution.features import numbered, supervoxels


def ball(*size: int, radius: float) -> Tensor:
    """A bright ball in noise, ``(1, 1, *spatial)``, bool and image."""
    axes = torch.meshgrid(*[torch.arange(side) - side / 2 for side in size], indexing="ij")
    return (sum(axis**2 for axis in axes) < radius**2)[None, None]


def noisy(inside: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    noise = torch.randn(inside.shape, generator=torch.Generator().manual_seed(0))
    return scale * (3 * inside.float() + 0.1 * noise) + shift


@pytest.mark.parametrize("size", [(48, 40), (30, 25, 20)])
def test_numbered_without_gaps_and_of_about_the_size(size: tuple[int, ...]) -> None:
    image = noisy(ball(*size, radius=8))
    labels = supervoxels(image, 5)
    assert labels.shape == image.shape
    assert labels.dtype == torch.int64
    counts = labels.flatten().bincount()
    assert bool((counts > 0).all())
    expected = torch.tensor([round(side / 5) for side in size]).prod()
    assert 0.7 * expected <= len(counts) <= 1.3 * expected
    assert torch.equal(labels, supervoxels(image, 5))


@pytest.mark.parametrize("size", [(48, 40), (30, 25, 20)])
def test_they_follow_edges(size: tuple[int, ...]) -> None:
    """Fewer voxels lie on the wrong side of an edge than with cubes, which a high compactness gives."""
    inside = ball(*size, radius=8)
    wrong = []
    for compactness in (1.0, 100.0):
        labels = supervoxels(noisy(inside), 6, compactness)
        share = torch.zeros(int(labels.max()) + 1).index_add_(0, labels.flatten(), inside.flatten().float())
        share /= labels.flatten().bincount()
        wrong.append(int(((share > 0.5)[labels] != inside).sum()))
    assert wrong[0] < 0.5 * wrong[1]


def test_sides_of_each_axis_in_the_order_of_the_tensor() -> None:
    labels = supervoxels(torch.zeros(1, 1, 12, 30, 8), (12, 10, 4))
    grid = torch.unique(labels, return_counts=True)
    assert len(grid[0]) == 1 * 3 * 2
    assert len(labels[0, 0, :, 0, 0].unique()) == 1
    assert len(labels[0, 0, 0, :, 0].unique()) == 3
    assert len(labels[0, 0, 0, 0, :].unique()) == 2


def test_sizes_of_numpy() -> None:
    image = noisy(ball(12, 10, radius=4))
    assert torch.equal(supervoxels(image, np.int64(5)), supervoxels(image, 5))
    assert torch.equal(supervoxels(image, list(np.array([5, 4]))), supervoxels(image, (5, 4)))


def test_intensities_of_any_scale_and_all_channels_count() -> None:
    inside = ball(30, 24, radius=7)
    labels = supervoxels(noisy(inside), 6)
    assert torch.equal(supervoxels(noisy(inside, 1000.0, -500.0), 6), labels)
    flat = torch.zeros(1, 1, 30, 24)
    two = supervoxels(torch.cat([flat, noisy(inside)], dim=1), 6)
    assert torch.equal(two, labels)
    assert not torch.equal(two, supervoxels(flat, 6))


def test_numbers_that_slic_leaves_out_are_closed() -> None:
    labels = supervoxels(torch.randn(1, 1, 48, 40, generator=torch.Generator().manual_seed(0)), 5, 0.1)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert 0 < int(labels.max()) + 1 < 48 * 40 / 25


def test_larger_than_the_volume_is_one() -> None:
    assert supervoxels(noisy(ball(9, 7, 5, radius=2)), 50).unique().tolist() == [0]


def test_within_labels_none_crosses_a_border() -> None:
    organs = torch.full((1, 1, 30, 24), 7)
    organs[..., 11:] = 3
    organs[..., 20:, :] = -2
    labels = supervoxels(noisy(ball(30, 24, radius=7)), 6, within=organs)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    for number in range(int(labels.max()) + 1):
        assert len(organs[labels == number].unique()) == 1
    free = supervoxels(noisy(ball(30, 24, radius=7)), 6)
    pairs = torch.stack([labels.flatten(), free.flatten()], dim=1).unique(dim=0)
    assert len(pairs) == int(labels.max()) + 1 > int(free.max()) + 1


def test_numbered() -> None:
    numbers, count = numbered(torch.tensor([[[[5, -1], [9, 5]]]]))
    assert numbers.tolist() == [[[[1, 0], [2, 1]]]]
    assert count == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size must be integers of at least 1, one or one an axis, got 0"),
        ({"size": (4, 2.5)}, "size must be integers of at least 1, one or one an axis, got (4, 2.5)"),
        ({"size": 16.0}, "size must be integers of at least 1, one or one an axis, got 16.0"),
        ({"size": "16"}, "size must be integers of at least 1, one or one an axis, got '16'"),
        ({"size": (4, 4, 4)}, "size must be one number or 2, one an axis, got (4, 4, 4)"),
        ({"compactness": 0}, "compactness must be above 0, got 0"),
        (
            {"within": torch.zeros(1, 1, 4, 5)},
            "within must lie on the image's grid (1, 1, 8, 8), got (1, 1, 4, 5)",
        ),
        ({"image": torch.full((1, 1, 8, 8), torch.nan)}, "image must hold finite values only, got 64 NaN or infinite"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "image must be one item, (1, C, *spatial), got (2, 1, 8, 8)"),
    ],
)
def test_refusals(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        supervoxels(**{"image": torch.zeros(1, 1, 8, 8), **options})
