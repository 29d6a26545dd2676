"""The class's probability against a loop over its voxels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unoise_monai.attribution.targets import ClassProbability, Region, SoftDice, class_sum, foreground_sum


def logits_of(classes: int, *size: int, seed: int = 0) -> Tensor:
    return torch.randn(1, classes, *size, generator=torch.Generator().manual_seed(seed))


def naive(logits: Tensor, where: Tensor, label: int | None, unperturbed: Tensor) -> float:
    values = []
    for at in where.nonzero().tolist():
        _, _, *voxel = at
        z = logits[(0, slice(None), *voxel)]
        own = int(unperturbed[(0, slice(None), *voxel)].argmax()) if label is None else label
        shares = [1 - float(z.sigmoid()), float(z.sigmoid())] if len(z) == 1 else z.softmax(0).tolist()
        values.append(shares[own])
    return sum(values) / len(values)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_the_mean_over_the_voxels_of_the_class(size: tuple[int, ...]) -> None:
    before, after = logits_of(3, *size), logits_of(3, *size, seed=1)
    segmented = before.argmax(dim=1, keepdim=True)
    for target in (class_sum(before, 2), SoftDice(torch.zeros(1, 1, *size), 2)):
        expected = naive(after, segmented == 2, 2, before)
        assert ClassProbability.of(target, before)(after) == pytest.approx(expected)
    expected = naive(after, segmented > 0, None, before)
    assert ClassProbability.of(foreground_sum(before), before)(after) == pytest.approx(expected)


def test_a_region_asks_about_its_own_voxels() -> None:
    before, after = logits_of(3, 5, 6), logits_of(3, 5, 6, seed=1)
    mask = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    mask[..., 1:3, 2] = True
    assert ClassProbability.of(Region(mask, 1), before)(after) == pytest.approx(naive(after, mask, 1, before))


@pytest.mark.parametrize("label", [0, 1])
def test_one_channel(label: int) -> None:
    before, after = logits_of(1, 5, 6), logits_of(1, 5, 6, seed=1)
    where = (before > 0) == bool(label)
    found = ClassProbability.of(class_sum(before, label), before)
    assert found(after) == pytest.approx(naive(after, where, label, before))
    assert found(before) > 0.5


def test_refuses_a_class_that_is_nowhere() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="must give the class at least one voxel, got none"):
        ClassProbability.of(SoftDice(torch.ones(1, 1, 4, 4), 2), logits)
