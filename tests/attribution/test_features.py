"""Features: what is kept and hidden, and values that go back to their voxels."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAttributor, Features, supervoxels


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
    image, labels = torch.randn(1, 1, 4, 6), torch.tensor([4, 4, 9, 9, -3, -3]).expand(1, 1, 4, 6)
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


def test_labels_may_be_a_metatensor() -> None:
    labels = MetaTensor(torch.tensor([0, 0, 1]).expand(1, 1, 2, 3))
    maps = Numbers(nn.Identity(), labels=labels)(torch.randn(1, 1, 2, 3), total)
    assert maps[0, 0, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": torch.zeros(2, 1, 4, 4)}, "labels must be one map, (1, 1, *spatial), got (2, 1, 4, 4)"),
        ({"size": 0}, "size must be integers of at least 1, one or one an axis, got 0"),
        ({"compactness": -1}, "compactness must be above 0, got -1"),
    ],
)
def test_refusals(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Numbers(nn.Identity(), **options)


def test_labels_on_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("labels must lie on the image's grid (4, 5), got (4, 4)")):
        Numbers(nn.Identity(), labels=torch.zeros(1, 1, 4, 4))(torch.zeros(1, 1, 4, 5), total)
