"""Rank correlation and structural similarity against the definitions written out in loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from unoise_monai.metrics.overlap import rank_correlation, structural_similarity


def maps(*spatial: int, seed: int = 0, levels: int | None = None) -> Tensor:
    values = torch.rand(2, 1, *spatial, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values if levels is None else (values * levels).floor()


def naive_spearman(first: list[float], second: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 5)])
def test_rank_correlation_equals_the_definition(levels: int | None, spatial: tuple[int, ...]) -> None:
    first = maps(*spatial, levels=levels)
    second = first + maps(*spatial, seed=1, levels=levels)
    where = maps(*spatial, seed=2) > 0.4
    found, within = rank_correlation(first, second), rank_correlation(first, second, where)
    assert found.shape == (2,)
    assert rank_correlation(first.float(), second.float()).dtype == torch.float64
    for item in range(2):
        a, b, inside = first[item].flatten(), second[item].flatten(), where[item].flatten()
        assert float(found[item]) == pytest.approx(naive_spearman(a.tolist(), b.tolist()))
        assert float(within[item]) == pytest.approx(naive_spearman(a[inside].tolist(), b[inside].tolist()))


def test_rank_correlation_sees_the_order_alone() -> None:
    first = maps(7, 8)
    assert rank_correlation(first, (10 * first).exp()).tolist() == pytest.approx([1, 1])
    assert rank_correlation(first, -first * 1e-30).tolist() == pytest.approx([-1, -1])


def test_rank_correlation_of_maps_without_contrast() -> None:
    flat = torch.full((2, 1, 7, 7), 0.1)
    assert rank_correlation(flat, flat * 3).tolist() == [1, 1]
    assert rank_correlation(flat, maps(7, 7)).tolist() == rank_correlation(maps(7, 7), flat).tolist() == [0, 0]
    # Flat where it counts.
    half = torch.cat([flat[..., :3], maps(7, 4)], dim=-1)
    where = torch.zeros_like(half, dtype=torch.bool)
    where[..., :3] = True
    assert rank_correlation(half, maps(7, 7), where).tolist() == [0, 0]


def naive_ssim(first: Tensor, second: Tensor) -> float:
    """Of one item, window by window; each map scaled to [0, 1]."""
    a, b = ((x - x.min()) / (x.max() - x.min()) for x in (first.double(), second.double()))
    sizes = [min(11, side if side % 2 else side - 1) for side in a.shape]
    weights = torch.ones(sizes, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        weights = weights * torch.exp(-(at**2) / (2 * 1.5**2)).view([-1 if i == axis else 1 for i in range(a.ndim)])
    weights = weights / weights.sum()
    values = []
    for corner in itertools.product(*(range(side - size + 1) for side, size in zip(a.shape, sizes, strict=True))):
        place = tuple(slice(first, first + size) for first, size in zip(corner, sizes, strict=True))
        x, y = a[place], b[place]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        vxy = (weights * (x - mx) * (y - my)).sum()
        c1, c2 = 0.01**2, 0.03**2
        values.append(float((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))
    return sum(values) / len(values)


@pytest.mark.parametrize("spatial", [(13, 12), (8, 5), (12, 3, 1), (13, 12, 11)])
def test_structural_similarity_equals_the_definition(spatial: tuple[int, ...]) -> None:
    first = maps(*spatial) * 40 - 7
    second = first + 20 * maps(*spatial, seed=1)
    found = structural_similarity(first, second)
    assert found.shape == (2,)
    for item in range(2):
        assert float(found[item]) == pytest.approx(naive_ssim(first[item, 0], second[item, 0]), abs=1e-4)


def test_structural_similarity_of_a_map_with_itself_is_one_at_any_scale() -> None:
    first = maps(12, 13)
    assert structural_similarity(first, first * 1e-60).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert float(structural_similarity(first, maps(12, 13, seed=1)).max()) < 0.5


def test_structural_similarity_of_maps_without_contrast() -> None:
    flat = torch.full((2, 1, 12, 12), 5.0)
    assert structural_similarity(flat, flat * 2).tolist() == [1, 1]
    assert float(structural_similarity(flat, maps(12, 12)).max()) < 0.1
