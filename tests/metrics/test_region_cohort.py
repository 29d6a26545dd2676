"""Figures of regions over cases, against means of the cases' own figures."""

import math

import pytest
import torch

from unoise_monai.metrics.bootstrap import bootstrap_mean
from unoise_monai.metrics.regions import ELSEWHERE, RegionRow, region_importance, regions_over_cases

NAMES = {1: "liver", 2: "spleen"}


def case(seed: int, labels: int = 3, scale: float = 1.0) -> list[RegionRow]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, labels, (1, 1, 6, 5, 2), generator=generator)
    importance = scale * torch.rand(label.shape, generator=generator)
    return region_importance(importance, label, NAMES, spacing_mm=(1.0, 2.0 + seed, 1.5), block=2, draws=5)


@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "c"]])
def test_is_the_bootstrap_of_the_cases_own_figures(groups: list[str] | None) -> None:
    cases = [case(seed) for seed in range(4)]
    rows = regions_over_cases(cases, groups, level=0.9, draws=100, seed=3)
    assert {row.name for row in rows} == {"liver", "spleen", ELSEWHERE}
    for row in rows:
        own = [next(one for one in rows if one.name == row.name) for rows in cases]
        for field in ("importance_share", "ratio", "density", "density_per_ml"):
            expected = bootstrap_mean([getattr(one, field).mean for one in own], 0.9, 100, 3, groups)
            assert getattr(row, field) == expected
            assert expected.count == 4
        assert row.volume_share == pytest.approx(sum(one.volume_share for one in own) / 4)
        assert row.volume_ml == pytest.approx(sum(one.volume_ml for one in own) / 4)
    assert sum(row.importance_share.mean for row in rows) == pytest.approx(1)


def test_a_case_without_the_region_is_left_out() -> None:
    cases = [case(0), case(1, labels=2), case(2), case(3, scale=0.0)]
    rows = {row.name: row for row in regions_over_cases(cases, draws=50)}
    spleens = [next(row for row in cases[k] if row.name == "spleen") for k in (0, 2, 3)]
    spleen = rows["spleen"]
    assert (spleen.ratio.count, spleen.ratio.missing) == (2, 2)
    assert spleen.ratio.mean == pytest.approx((spleens[0].ratio.mean + spleens[1].ratio.mean) / 2)
    assert (spleen.density.count, spleen.density.missing) == (3, 1)
    assert spleen.volume_share == pytest.approx(sum(row.volume_share for row in spleens) / 3)
    assert (rows["liver"].ratio.count, rows["liver"].ratio.missing) == (3, 1)


@pytest.mark.parametrize("order", ["ratio", "importance_share"])
def test_sorted_with_nan_last(order: str) -> None:
    flat = [row for row in case(1, scale=0.0) if row.name == "spleen"]
    cases = [flat, *([row for row in case(seed) if row.name != "spleen"] for seed in (0, 2))]
    cases[1].reverse()
    for names in (cases, [flat, cases[1][::-1], cases[2][::-1]]):
        rows = regions_over_cases(names, draws=10, order=order)
        values = [getattr(row, order).mean for row in rows]
        assert values[0] > values[1]
        assert math.isnan(values[2])
        assert rows[2].name == "spleen"


def test_refuses() -> None:
    with pytest.raises(ValueError, match="cases must be at least one, got none"):
        regions_over_cases([])
    with pytest.raises(ValueError, match="order must be one of 'ratio', 'importance_share', got 'name'"):
        regions_over_cases([case(0)], order="name")
    with pytest.raises(ValueError, match="groups must be one for each of the 1 values, got 2"):
        regions_over_cases([case(0)], groups=["a", "b"])
