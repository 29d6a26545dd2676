"""Parts of the image as features: supervoxels, what is kept and hidden, and ablation of each."""

import re
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAblation, FeatureAttributor, Features, numbered, supervoxels
from unoise_monai.attribution.targets import SoftDice
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
def test_equals_a_naive_loop_and_captum(size: tuple[int, ...], value: float) -> None:
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
    theirs = captum.attr.FeatureAblation(lambda images: target(network(images)))
    captums = theirs.attribute(image, baselines=value, feature_mask=labels)
    torch.testing.assert_close(own, captums[:, :1])


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
        ({"within": torch.zeros(1, 1, 4, 5)}, "within must lie on the image's grid (1, 1, 8, 8), got (1, 1, 4, 5)"),
        ({"image": torch.full((1, 1, 8, 8), torch.nan)}, "image must hold finite values only, got 64 NaN or infinite"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "image must be one item, (1, C, *spatial), got (2, 1, 8, 8)"),
    ],
)
def test_refusals_of_supervoxels(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        supervoxels(**{"image": torch.zeros(1, 1, 8, 8), **options})
