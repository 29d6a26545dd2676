"""A border is the voxels of a class that touch the background."""

import itertools

import pytest
import torch
from torch import Tensor

from unoise_monai.attribution import border, border_mean


def logits_of(classes: int, *size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(classes))


def naive_border(labels: Tensor, label: int) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    size = labels.shape[2:]
    for item, *at in itertools.product(range(len(labels)), *map(range, size)):
        for axis, step in itertools.product(range(len(size)), (-1, 1)):
            near = list(at)
            near[axis] += step
            inside = 0 <= near[axis] < size[axis]
            if inside and labels[(item, 0, *at)] == label and labels[(item, 0, *near)] == 0:
                found[(item, 0, *at)] = True
    return found


@pytest.mark.parametrize("size", [(6, 7), (5, 4, 6)])
@pytest.mark.parametrize("label", [1, 2])
def test_border_is_the_naive_one(size: tuple[int, ...], label: int) -> None:
    labels = torch.randint(0, 3, (2, 1, *size), generator=torch.Generator().manual_seed(0))
    assert torch.equal(border(labels, label), naive_border(labels, label))


def test_neither_another_class_nor_the_image_s_edge_is_background() -> None:
    labels = torch.tensor([[[[1, 1, 2, 2, 0]]]])
    assert not border(labels, 1).any()
    assert border(labels, 2).flatten().tolist() == [False, False, False, True, False]


def test_border_mean() -> None:
    logits, perturbed = logits_of(3, 8, 8), logits_of(3, 8, 8) + 1
    where = naive_border(logits.argmax(dim=1, keepdim=True), 1)
    expected = torch.stack([perturbed[item, 1][where[item, 0]].mean() for item in range(2)])
    torch.testing.assert_close(border_mean(logits, 1)(perturbed), expected)


def test_background_has_no_border() -> None:
    with pytest.raises(ValueError, match="label must be above 0"):
        border_mean(torch.zeros(1, 3, 3, 3), 0)
