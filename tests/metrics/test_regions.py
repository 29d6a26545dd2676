"""How much importance lies in each region, against loops, over cases, and on a real CT with its organs."""

import itertools
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.metrics.bootstrap import Interval, bootstrap_mean
from unoise_monai.metrics.regions import ELSEWHERE, RegionRow, region_importance, regions_over_cases

ABDOMEN = Path(__file__).parents[2].parent / "shared" / "data" / "abdomen_ct"
NAMES = {1: "liver", 2: "spleen", 5: "aorta"}
QUICK = {"spacing_mm": (1.0, 2.0, 1.5), "block": 2, "draws": 20}


def drawn(*size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (1, 1, *size), generator=generator)
    return torch.rand(labels.shape, generator=generator), labels


def by_name(rows: list[RegionRow]) -> dict[str, RegionRow]:
    return {row.name: row for row in rows}


def naive_results(pairs: list[tuple[float, str]], name: str) -> tuple[float, float, float]:
    """Share of the importance, its ratio to the share of the volume, and the mean importance."""
    inside = [value for value, own in pairs if own == name]
    share = sum(inside) / sum(value for value, _ in pairs)
    return share, share / (len(inside) / len(pairs)), sum(inside) / len(inside)


def naive_blocks(importance: Tensor, labels: Tensor, block: int) -> list[list[tuple[float, str]]]:
    size = importance.shape[2:]
    blocks: dict[tuple[int, ...], list[tuple[float, str]]] = {}
    for at in itertools.product(*map(range, size)):
        name = NAMES.get(int(labels[(0, 0, *at)]), ELSEWHERE)
        blocks.setdefault(tuple(i // block for i in at), []).append((float(importance[(0, 0, *at)]), name))
    return list(blocks.values())


@pytest.mark.parametrize(("size", "block"), [((7, 9), 2), ((5, 4, 6), 3), ((4, 4, 4), 8)])
def test_equals_the_loop_over_voxels(size: tuple[int, ...], block: int) -> None:
    importance, labels = drawn(*size)
    rows = by_name(region_importance(importance, labels, NAMES, block=block, draws=10))
    blocks = naive_blocks(importance, labels, block)
    pairs = [pair for one in blocks for pair in one]
    assert set(rows) == {"liver", "spleen", "aorta", ELSEWHERE}
    for name, row in rows.items():
        assert (row.importance_share.mean, row.ratio.mean, row.density.mean) == pytest.approx(
            naive_results(pairs, name)
        )
        assert row.volume_share == pytest.approx(sum(own == name for _, own in pairs) / len(pairs))
        assert row.ratio.count == sum(any(own == name for _, own in one) for one in blocks)


def test_intervals_equal_a_loop_over_drawn_blocks() -> None:
    importance, labels = drawn(6, 5, 7)
    rows = by_name(region_importance(importance, labels, NAMES, block=3, level=0.8, draws=60, seed=4))
    blocks = naive_blocks(importance, labels, 3)
    assert len(blocks) == 2 * 2 * 3
    rng = np.random.default_rng(4)
    chosen = [[pair for k in rng.integers(12, size=12) for pair in blocks[k]] for _ in range(60)]
    for name, row in rows.items():
        results = np.array([naive_results(pairs, name) for pairs in chosen])
        low, high = np.quantile(results, [0.1, 0.9], axis=0)
        for k, interval in enumerate((row.importance_share, row.ratio, row.density)):
            assert (interval.low, interval.high) == pytest.approx((low[k], high[k]))


def test_shares_add_up_and_a_flat_map_has_ratio_1() -> None:
    importance, labels = drawn(8, 8, 8)
    rows = region_importance(importance, labels, NAMES, block=4, draws=50)
    assert sum(row.importance_share.mean for row in rows) == pytest.approx(1)
    assert sum(row.volume_share for row in rows) == pytest.approx(1)
    for row in region_importance(torch.full_like(importance, 0.25), labels, NAMES, block=4, draws=50):
        assert row.ratio == Interval(*[pytest.approx(1)] * 3, 8)
        assert row.density == Interval(*[pytest.approx(0.25)] * 3, 8)
    only = by_name(region_importance((labels == 2).float() * 7, labels, NAMES, block=4, draws=50))
    assert only["spleen"].importance_share == Interval(1, 1, 1, 8)
    assert only["spleen"].ratio.mean == pytest.approx(1 / only["spleen"].volume_share)
    assert only["liver"].ratio == Interval(0, 0, 0, 8)


def test_sorted_by_what_is_asked_for() -> None:
    labels = torch.tensor([1] * 90 + [2] * 8 + [5] * 2).view(1, 1, 10, 10)
    importance = torch.where(labels == 1, 0.2, torch.where(labels == 2, 0.9, 0.5))
    rows = region_importance(importance, labels, NAMES, block=2, draws=5)
    assert [row.name for row in rows] == ["spleen", "aorta", "liver"]
    rows = region_importance(importance, labels, NAMES, block=2, draws=5, order="importance_share")
    assert [row.name for row in rows] == ["liver", "spleen", "aorta"]


def test_smooth_maps_need_blocks() -> None:
    """A map that is constant in cubes of 4 voxels has as many independent values as cubes, not as voxels."""
    cubes = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    importance = cubes
    for axis in (2, 3, 4):
        importance = importance.repeat_interleave(4, dim=axis)
    labels = torch.ones_like(importance)
    (cube,) = region_importance(cubes, labels[..., ::4, ::4, ::4], NAMES, block=1)
    (row,) = region_importance(importance, labels, NAMES, block=4)
    assert (row.density.low, row.density.high) == pytest.approx((cube.density.low, cube.density.high))
    (voxel,) = region_importance(importance, labels, NAMES, block=1, draws=200)
    assert row.density.high - row.density.low > 5 * (voxel.density.high - voxel.density.low)


def test_millilitres() -> None:
    importance, labels = drawn(6, 6, 6)
    row = by_name(region_importance(importance, labels, NAMES, spacing_mm=(0.5, 2.0, 4.0), block=3, draws=50))["liver"]
    voxels = int((labels == 1).sum())
    assert row.volume_ml == pytest.approx(voxels * 0.004)
    total = float(importance[labels == 1].sum())
    assert row.density_per_ml.mean == pytest.approx(total / (voxels * 0.004))
    assert row.density_per_ml.low == pytest.approx(row.density.low * 250)
    assert row.density_per_ml.high == pytest.approx(row.density.high * 250)
    plain = by_name(region_importance(importance, labels, NAMES, draws=5))["liver"]
    assert math.isnan(plain.volume_ml)
    assert math.isnan(plain.density_per_ml.mean)


def test_areas_are_no_millilitres() -> None:
    importance, labels = drawn(6, 6)
    for row in region_importance(importance, labels, NAMES, spacing_mm=(1.0, 2.0), draws=20):
        assert math.isnan(row.volume_ml)
        per_ml = row.density_per_ml
        assert all(math.isnan(value) for value in (per_ml.mean, per_ml.low, per_ml.high))
        assert row.volume_share > 0


def test_names() -> None:
    importance, labels = drawn(6, 6, 4)
    rows = region_importance(importance, labels, NAMES, **QUICK)
    assert region_importance(importance, labels, {str(key): name for key, name in NAMES.items()}, **QUICK) == rows
    assert region_importance(importance, labels, NAMES | {77: "absent"}, **QUICK) == rows
    # Labels of one name are one region, and that of the background may be named.
    merged = by_name(region_importance(importance, labels, {0: "background", 1: "organ", 2: "organ"}, **QUICK))
    organ = by_name(region_importance(importance, (labels == 1) | (labels == 2), {1: "organ"}, **QUICK))["organ"]
    assert merged["organ"] == organ
    assert merged["background"].volume_share == pytest.approx(float((labels == 0).float().mean()))
    assert merged[ELSEWHERE].volume_share == pytest.approx(float((labels > 2).float().mean()))
    everywhere = {label: "all" for label in range(6)}
    assert [row.name for row in region_importance(importance, labels, everywhere, **QUICK)] == ["all"]


def test_kinds_of_tensors() -> None:
    importance, labels = drawn(6, 6, 4)
    importance = importance.bfloat16().float()
    rows = region_importance(importance, labels, NAMES, **QUICK)
    assert region_importance(MetaTensor(importance).requires_grad_(), MetaTensor(labels), NAMES, **QUICK) == rows
    assert region_importance(importance.bfloat16(), labels.to(torch.uint8), NAMES, **QUICK) == rows
    assert region_importance(importance, labels.float(), NAMES, **QUICK) == rows
    assert all(isinstance(row.volume_share, float) and type(row.ratio.mean) is float for row in rows)


def test_a_map_of_zeros_has_no_shares() -> None:
    labels = drawn(6, 6)[1]
    rows = region_importance(torch.zeros(labels.shape), labels, NAMES, block=2, draws=20)
    assert all(math.isnan(value) for row in rows for value in (row.ratio.mean, row.ratio.low, row.ratio.high))
    assert all(math.isnan(row.importance_share.mean) for row in rows)
    assert all(row.density.mean == row.density.low == row.density.high == 0 for row in rows)


def test_one_block_says_nothing_of_the_spread() -> None:
    importance, labels = torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    labels[0, 0, 1, 1:4] = 2
    row = by_name(region_importance(importance, labels, NAMES, block=4))["spleen"]
    for interval in (row.importance_share, row.ratio, row.density):
        assert interval.count == 1
        assert not math.isnan(interval.mean)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"importance": torch.full((1, 1, 4, 4), -0.5)}, "importance must be at least 0, got -0.5: take its magnitude"),
        ({"importance": torch.full((1, 1, 4, 4), math.inf)}, "importance must hold finite values only, got 16 NaN"),
        ({"importance": torch.ones(1, 1, 4, 5)}, r"on one grid, got \(1, 1, 4, 5\) and \(1, 1, 4, 4\)"),
        ({"importance": torch.ones(2, 1, 4, 4), "labels": torch.ones(2, 1, 4, 4)}, r"one item .* got \(2, 1, 4, 4\)"),
        ({"labels": torch.full((1, 1, 4, 4), 0.5)}, "labels must be whole numbers, got 0.5"),
        ({"names": {"liver": 1}}, "invalid literal for int"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, r"spacing_mm must have one number for each of 2 axes, got \(1.0, 1.0, 1.0\)"),
        ({"spacing_mm": (1.0, 0.0)}, r"spacing_mm must be finite numbers above 0, got \(1.0, 0.0\)"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"order": "name"}, "order must be one of 'ratio', 'importance_share', got 'name'"),
        ({"level": 0.0}, "level must be above 0 and at most 1, got 0.0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_refuses(change: dict, says: str) -> None:
    words = {"importance": torch.ones(1, 1, 4, 4), "labels": torch.ones(1, 1, 4, 4), "names": NAMES} | change
    with pytest.raises(ValueError, match=says):
        region_importance(**words)


@pytest.mark.skipif(not ABDOMEN.is_dir(), reason="needs ../shared/data, the abdominal CT and its organs")
def test_the_organs_of_a_real_ct() -> None:
    scan = nib.load(ABDOMEN / "imagesTr" / "abdomen_001.nii.gz")
    organs = nib.load(ABDOMEN / "organs_001.nii.gz")
    np.testing.assert_allclose(scan.affine, organs.affine)
    names = json.loads((ABDOMEN / "organs.json").read_text(encoding="utf-8"))
    intensity, labels = torch.from_numpy(scan.get_fdata(dtype=np.float32)), torch.from_numpy(organs.get_fdata())
    edges = torch.stack(torch.gradient(intensity)).norm(dim=0)
    spacing = [float(mm) for mm in scan.header.get_zooms()]
    rows = region_importance(edges[None, None], labels[None, None], names, spacing, draws=200)
    assert {row.name for row in rows} == {ELSEWHERE, *names.values()}
    assert len(rows) == 60
    ratios = [row.ratio.mean for row in rows]
    assert ratios == sorted(ratios, reverse=True)
    assert sum(row.importance_share.mean for row in rows) == pytest.approx(1)
    found = by_name(rows)
    liver = labels == 29
    assert found["liver"].volume_ml == pytest.approx(float(liver.sum()) * 0.027, rel=1e-4)
    assert found["liver"].density.mean == pytest.approx(float(edges[liver].double().mean()))
    assert found["liver"].ratio.low < found["liver"].ratio.mean < found["liver"].ratio.high
    # Bone is full of edges, the inside of a liver has few.
    assert found["femur_left"].ratio.low > 1 > found["liver"].ratio.high


def case(seed: int, labels: int = 3, scale: float = 1.0) -> list[RegionRow]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, labels, (1, 1, 6, 5, 2), generator=generator)
    importance = scale * torch.rand(label.shape, generator=generator)
    return region_importance(importance, label, NAMES, spacing_mm=(1.0, 2.0 + seed, 1.5), block=2, draws=5)


@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "c"]])
def test_is_the_bootstrap_of_the_cases_own_results(groups: list[str] | None) -> None:
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": []}, "cases must be at least one, got none"),
        ({"order": "name"}, "order must be one of 'ratio', 'importance_share', got 'name'"),
        ({"groups": ["a", "b"]}, "groups must be one for each of the 1 values, got 2"),
    ],
)
def test_cohort_refuses(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        regions_over_cases(**{"cases": [case(0)], **change})
