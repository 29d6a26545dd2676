"""Parts of the image as features: supervoxels, ablation, LIME and Kernel SHAP against their definitions."""

import itertools
import logging
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution import FeatureAblation, KernelShap, Lime, SoftDice, supervoxels
from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import BYTES, FeatureAttributor, Features, _ridge, coalitions
from unoise_monai.inference.memory import LiveTensors
from unoise_monai.networks import UNet


class Numbers(FeatureAttributor):
    """Gives feature k the value k + 1, and remembers the features."""

    name = "numbers"

    def effects(self, features: Features, score: Score) -> Tensor:
        self.features = features
        self.seen = self.scores(features, torch.eye(features.count, dtype=torch.bool), score)
        return torch.arange(features.count) + 1.0


def total(logits: Tensor) -> Tensor:
    return logits.flatten(1).sum(dim=1)


def test_keeping() -> None:
    image, hidden = torch.randn(1, 2, 3, 2), torch.randn(1, 2, 3, 2)
    labels = torch.tensor([[[[0, 1], [2, 1], [0, 0]]]])
    kept = torch.tensor([[True, False, True], [False, True, False], [True, True, True], [False, False, False]])
    copies = Features(image, hidden, labels, 3).keeping(kept)
    assert copies.shape == (4, 2, 3, 2)
    for row in range(4):
        for x in range(3):
            for y in range(2):
                source = image if kept[row, labels[0, 0, x, y]] else hidden
                assert torch.equal(copies[row, :, x, y], source[0, :, x, y])


@pytest.mark.parametrize("memory_gb", [None, 0.01])
def test_scores_of_what_is_kept(memory_gb: float | None) -> None:
    image, labels = torch.randn(1, 1, 4, 6), MetaTensor(torch.tensor([4, 4, 9, 9, -3, -3]).expand(1, 1, 4, 6))
    attributor = Numbers(nn.Identity(), labels=labels, memory_gb=memory_gb)
    maps = attributor(image, total)
    expected = [float(image[..., columns].sum()) for columns in ([4, 5], [0, 1], [2, 3])]
    assert attributor.seen.tolist() == pytest.approx(expected, abs=1e-6)
    assert maps[0, 0, 0].tolist() == [2, 2, 3, 3, 1, 1]
    assert maps.meta["attribution"][0]["features"] == 3


def test_per_voxel_values_add_up_to_the_features_own() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2]).expand(1, 1, 4, 6)
    maps = Numbers(nn.Identity(), labels=labels, per_voxel=True)(torch.randn(1, 1, 4, 6), total).as_tensor()
    assert [float(maps[labels == number].sum()) for number in range(3)] == pytest.approx([1, 2, 3])
    assert [len(maps[labels == number].unique()) for number in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("size", [(20, 16), (12, 10, 8)])
def test_supervoxels_of_each_image(size: tuple[int, ...]) -> None:
    image = torch.randn(2, 1, *size)
    maps = Numbers(nn.Identity(), size=4, compactness=0.5)(MetaTensor(image), total).as_tensor()
    for item in range(2):
        own = supervoxels(image[item : item + 1], 4, 0.5)
        assert torch.equal(maps[item : item + 1], own + 1.0)


def test_labels_on_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("labels must lie on the image's grid (4, 5), got (4, 4)")):
        Numbers(nn.Identity(), labels=torch.zeros(1, 1, 4, 4))(torch.zeros(1, 1, 4, 5), total)


@pytest.mark.parametrize("size", [(16, 12), (8, 10, 6)])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_equals_a_naive_loop(size: tuple[int, ...], value: float) -> None:
    torch.manual_seed(0)
    network, image = UNet(len(size), 2, 3, depth=2, channel_factor=2).eval(), torch.randn(1, 2, *size)
    target = SoftDice(torch.randint(0, 3, (1, 1, *size)), 1)
    labels = supervoxels(image, 4)
    with torch.no_grad():
        whole, expected = target(network(image)), torch.zeros(1, 1, *size)
        for number in range(int(labels.max()) + 1):
            fall = whole - target(network(torch.where(labels == number, value, image)))
            expected[labels == number] = float(fall)
    own = FeatureAblation(network, size=4, baseline=value)(image, target).as_tensor()
    torch.testing.assert_close(own, expected)


def test_organs_of_a_linear_score_have_what_they_hold() -> None:
    organs = torch.tensor([0, 0, 5, 5, 5, 2]).expand(1, 1, 4, 6)
    image = torch.randn(1, 1, 4, 6)
    maps = FeatureAblation(nn.Identity(), labels=organs)(image, total).as_tensor()
    for label in (0, 2, 5):
        assert maps[organs == label].unique().tolist() == pytest.approx([float(image[organs == label].sum())], abs=1e-5)


def test_many_features_take_no_memory_of_their_own() -> None:
    """All of them hidden at once would be a square of their number, here 400 MB."""
    image = torch.rand(1, 1, 200, 100)
    labels = torch.arange(20000).reshape(1, 1, 200, 100)
    attributor = FeatureAblation(nn.Identity(), labels=labels)
    features, score = Features(image, torch.zeros_like(image), labels, 20000), Score(attributor.volume, total)
    attributor.batches = lambda planned, _: iter([range(0, 2), range(2, 3)])  # type: ignore[method-assign]
    with torch.no_grad(), LiveTensors(existing=[image, labels]) as tensors:
        values = attributor.effects(features, score)
    assert tensors.peak < 4e6
    assert int((values != 0).sum()) == 3
    torch.testing.assert_close(values[values != 0], image.flatten()[values != 0].double(), rtol=0, atol=1e-2)


def test_features_that_the_time_did_not_reach_are_0() -> None:
    labels = torch.arange(24).reshape(1, 1, 4, 6)
    maps = FeatureAblation(nn.Identity(), labels=labels, time_limit_s=1e-9)(torch.ones(1, 1, 4, 6), total)
    assert maps.flatten().sort().values.tolist() == [0] * 23 + [1]
    assert maps.meta["attribution"][0]["evaluated"] == 1


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
    # Larger than the volume, there is one.
    assert supervoxels(image, 50).unique().tolist() == [0]


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size must be integers of at least 1, one or one an axis, got 0"),
        ({"size": (4, 2.5)}, "size must be integers of at least 1, one or one an axis, got (4, 2.5)"),
        ({"size": 16.0}, "size must be integers of at least 1, one or one an axis, got 16.0"),
        ({"size": "16"}, "size must be integers of at least 1, one or one an axis, got '16'"),
        ({"size": (4, 4, 4)}, "size must be one number or 2, one an axis, got (4, 4, 4)"),
        ({"compactness": 0}, "compactness must be above 0, got 0"),
        ({"within": torch.zeros(1, 1, 4, 5)}, "within must lie on the image's grid (1, 1, 8, 8), got (1, 1, 4, 5)"),
        ({"image": torch.full((1, 1, 8, 8), torch.nan)}, "image must hold finite values only, got 64 NaN or infinite"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "image must be one item, (1, C, *spatial), got (2, 1, 8, 8)"),
    ],
)
def test_refusals_of_supervoxels(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        supervoxels(**{"image": torch.zeros(1, 1, 8, 8), **options})


def columns(count: int) -> Tensor:
    """``count`` features, the columns of an image ``(1, 1, 2, count)``."""
    return torch.arange(count).repeat(1, 1, 2, 1)


def linear(count: int) -> Callable[[Tensor], Tensor]:
    weights = torch.randn(count, generator=torch.Generator().manual_seed(3))
    return lambda logits: 7 + (logits.mean(dim=(1, 2)) * weights).sum(dim=1)


def shares(image: Tensor) -> Tensor:
    """What each feature adds to the linear score."""
    count = image.shape[-1]
    each = torch.stack([image.where(columns(count) == k, 0.0) for k in range(count)])[:, 0]
    return linear(count)(each) - linear(count)(torch.zeros_like(image))


def interacting(count: int) -> Callable[[Tensor], Tensor]:
    """Products of features, so that an additive model is not enough."""
    plain = linear(count)
    return lambda logits: plain(logits) + 3 * logits[:, 0, 0, 0] * logits[:, 0, 0, 1] - 2 * logits[:, 0, 0].prod(dim=1)


class Zero(Score):
    """A score that asks no network."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), lambda logits: logits)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images))


def shapley(score: Callable[[Tensor], Tensor], image: Tensor, hidden: Tensor) -> list[float]:
    """By the definition: the mean gain over all orders."""
    count = image.shape[-1]
    gains = [0.0] * count
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        copy = hidden.clone()
        for feature in order:
            before = float(score(copy))
            copy[..., feature] = image[..., feature]
            gains[feature] += (float(score(copy)) - before) / len(orders)
    return gains


def test_all_combinations_give_the_shapley_values() -> None:
    image = torch.rand(1, 1, 2, 5) + 0.5
    for value in (0.0, -1.0):
        maps = KernelShap(nn.Identity(), labels=columns(5), baseline=value)(image, interacting(5))
        expected = shapley(interacting(5), image, torch.full_like(image, value))
        assert maps[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)
        assert maps.meta["attribution"][0]["planned"] == 2**5 - 2
        assert maps.meta["attribution"][0]["explained"] < 0.999


@pytest.mark.parametrize("samples", [40, 41, 200])
def test_samples_of_a_linear_score_give_the_shapley_values(samples: int) -> None:
    count, image = 12, torch.randn(1, 1, 2, 12)
    maps = KernelShap(nn.Identity(), samples=samples, labels=columns(count))(image, linear(count))
    torch.testing.assert_close(maps.as_tensor()[0, 0, 0], shares(image), rtol=1e-4, atol=1e-5)
    notes = maps.meta["attribution"][0]
    assert notes["explained"] == pytest.approx(1, abs=1e-6)
    assert notes["evaluated"] == samples


def test_samples_give_the_shapley_values_on_average() -> None:
    image = torch.rand(1, 1, 2, 8) + 0.5
    exact = KernelShap(nn.Identity(), samples=254, labels=columns(8))(image, interacting(8)).as_tensor()
    drawn = [
        KernelShap(nn.Identity(), samples=120, labels=columns(8), seed=seed)(image, interacting(8)).as_tensor()
        for seed in range(30)
    ]
    error = torch.stack([(one - exact).square().mean().sqrt() for one in drawn])
    mean = (torch.stack(drawn).mean(dim=0) - exact).square().mean().sqrt()
    assert 0 < float(mean) < 0.04 * float(exact.abs().max())
    # What is left is noise of the draw: the mean of 30 is about as much closer as independent errors make it.
    assert float(mean) < 2 * float(error.mean()) / 30**0.5


@pytest.mark.parametrize("samples", [6, 30, 1000])
@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_the_values_add_up_to_the_score(count: int, samples: int, caplog: Any) -> None:
    image = torch.rand(1, 1, 2, count) + 0.5
    score: Any = interacting(count) if count > 1 else linear(count)
    with caplog.at_level(logging.WARNING):
        maps = KernelShap(nn.Identity(), samples=samples, labels=columns(count))(image, score)
    expected = float(score(image) - score(torch.zeros_like(image)))
    assert float(maps[0, 0, 0].sum()) == pytest.approx(expected, abs=1e-4)
    said = f"kernel_shap: {samples} samples do not determine {count} features" in caplog.text
    assert said == ((count, samples) in {(9, 6), (20, 6), (20, 30)})


def test_samples_grow_with_the_features() -> None:
    maps = KernelShap(nn.Identity(), labels=columns(20))(torch.randn(1, 1, 2, 20), linear(20))
    assert maps.meta["attribution"][0]["planned"] == 2048 + 40


@pytest.mark.parametrize("count", [5, 12, 25])
def test_as_many_pairs_as_determine_a_linear_score(count: int, caplog: Any) -> None:
    """Without a warning the values of a linear score are exact; with one they need not be."""
    image = torch.randn(1, 1, 2, count, generator=torch.Generator().manual_seed(count))
    errors = {}
    for samples in (count, 3 * count):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            maps = KernelShap(nn.Identity(), samples=samples, labels=columns(count))(image, linear(count))
        errors[bool(caplog.text)] = float((maps.as_tensor()[0, 0, 0] - shares(image)).abs().max())
    assert errors[False] < 1e-4 < 1e-2 < errors[True]


def test_coalitions_all_of_them() -> None:
    kept, weights = coalitions(4, 14)
    assert sorted(map(tuple, kept.int().tolist())) == list(itertools.product((0, 1), repeat=4))[1:-1]
    for row, weight in zip(kept, weights.tolist(), strict=True):
        size = int(row.sum())
        assert weight == pytest.approx(3 / (math.comb(4, size) * size * (4 - size)))


def test_coalitions_drawn_by_the_kernel_in_pairs() -> None:
    torch.manual_seed(0)
    kept, weights = coalitions(6, 20)
    assert torch.equal(kept[0::2], ~kept[1::2])
    assert weights.tolist() == [1] * 20
    kept, _ = coalitions(16, 40000)
    assert bool((kept.any(dim=1) & ~kept.all(dim=1)).all())
    kernel = torch.tensor([1 / (size * (16 - size)) for size in range(1, 16)])
    drawn = kept.sum(dim=1).bincount(minlength=17)[1:16] / 40000
    torch.testing.assert_close(drawn, kernel / kernel.sum(), rtol=0.1, atol=0.003)
    torch.testing.assert_close(kept.double().mean(dim=0), torch.full((16,), 0.5).double(), rtol=0, atol=1e-9)
    # Of one size every feature is as likely as any other.
    single = kept[kept.sum(dim=1) == 1].sum(dim=0)
    assert float(single.min()) > 0.8 * float(single.double().mean())


@pytest.mark.parametrize(("ridge", "kernel_width"), [(1.0, 0.25), (0.0, 0.5), (30.0, 0.1)])
def test_lime_solves_its_normal_equations(ridge: float, kernel_width: float) -> None:
    """With the intercept as a column of its own that has no penalty."""
    count, image = 6, torch.rand(1, 1, 2, 6) + 0.5
    seen: list[Tensor] = []

    def score(logits: Tensor) -> Tensor:
        seen.append(logits[:, 0, 0] != 0)
        return interacting(count)(logits)

    maps = Lime(nn.Identity(), 50, kernel_width, ridge, labels=columns(count))(image, score)
    kept = torch.cat(seen).double()
    assert kept.shape == (50, count)
    assert bool(kept[0].all())
    observed = interacting(count)(torch.where(kept[:, None, None] == 1, image, 0.0).float()).double()
    ones = torch.ones(count, dtype=torch.float64)
    cosine = torch.nan_to_num((kept @ ones) / (kept.norm(dim=1) * ones.norm()))
    weights = torch.sqrt(torch.exp(-((1 - cosine) ** 2) / kernel_width**2))
    design = torch.cat([kept, torch.ones(50, 1, dtype=torch.float64)], dim=1)
    penalty = ridge * torch.diag(torch.tensor([1.0] * count + [0.0], dtype=torch.float64))
    left, right = design.T @ (weights[:, None] * design) + penalty, design.T @ (weights * observed)
    solution = torch.linalg.solve(left, right)
    torch.testing.assert_close(maps.as_tensor()[0, 0, 0].double(), solution[:count], rtol=1e-4, atol=1e-5)
    residual = observed - design @ solution
    mean = (weights * observed).sum() / weights.sum()
    share = 1 - (weights * residual**2).sum() / (weights * (observed - mean) ** 2).sum()
    assert maps.meta["attribution"][0]["explained"] == pytest.approx(float(share), abs=1e-5)


def test_lime_of_a_linear_score_without_a_penalty_is_the_score_s_own() -> None:
    count, image = 10, torch.randn(1, 1, 2, 10)
    maps = Lime(nn.Identity(), samples=40, ridge=0, labels=columns(count))(image, linear(count))
    torch.testing.assert_close(maps.as_tensor()[0, 0, 0], shares(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [Lime, KernelShap])
def test_a_constant_score_explains_nothing(method: Any) -> None:
    maps = method(nn.Identity(), samples=20, labels=columns(8))(
        torch.randn(1, 1, 2, 8), lambda logits: torch.full((len(logits),), 5.0)
    )
    torch.testing.assert_close(maps.as_tensor(), torch.zeros(1, 1, 2, 8), rtol=0, atol=1e-12)
    assert maps.meta["attribution"][0]["explained"] is None


@pytest.mark.parametrize("samples", [8, 40])
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 0.5])
def test_a_ridge_is_least_squares_with_the_penalty_as_observations(samples: int, ridge: float) -> None:
    """Of more samples than features and of fewer; without a penalty, the solution of least norm."""
    generator = torch.Generator().manual_seed(samples)
    design = torch.randn(samples, 15, generator=generator, dtype=torch.float64)
    observed = torch.randn(samples, generator=generator, dtype=torch.float64)
    rows = torch.cat([design, ridge**0.5 * torch.eye(15, dtype=torch.float64)])
    expected = torch.linalg.pinv(rows, rcond=1e-12) @ torch.cat([observed, torch.zeros(15, dtype=torch.float64)])
    torch.testing.assert_close(_ridge(design, observed, ridge), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [Lime, KernelShap])
def test_a_model_beyond_the_memory_is_refused_before_any_pass(method: Any) -> None:
    passes = []
    network = nn.Identity()
    network.register_forward_hook(lambda *_: passes.append(1))
    large, few = columns(300), 0.99 * BYTES * 5000 * 300 / 1e9
    says = "memory_gb must be at least 0.026 for a model of 5000 samples of 300 features"
    with pytest.raises(MemoryError, match=re.escape(says)):
        method(network, samples=5000, labels=large, memory_gb=few)(torch.randn(1, 1, 2, 300), linear(300))
    assert not passes
    # Few features have few combinations.
    KernelShap(network, samples=10**9, labels=columns(6), memory_gb=1e-4)(torch.randn(1, 1, 2, 6), linear(6))


@pytest.mark.parametrize("method", [Lime, KernelShap])
@pytest.mark.parametrize("samples", [300, 2500])
def test_a_model_takes_no_more_memory_than_it_is_checked_for(method: Any, samples: int) -> None:
    count = 1000
    attributor = method(nn.Identity(), samples=samples)
    features = Features(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1).long(), count)
    attributor.scores = lambda _, kept, __: torch.arange(len(kept)).double() % 7
    with LiveTensors() as tensors:
        attributor.effects(features, Zero())
    need = BYTES * samples * count
    # What the solver takes inside is one copy of the matrix more.
    assert tensors.peak <= need
    assert tensors.peak > 0.4 * need
