"""Dice from logits against counting voxels."""

import math

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.metrics import foreground_dice, segmentation_pair
from unoise_monai.networks.modes import segmentation


def batch(classes: int, spatial: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes + len(spatial))
    logits = torch.randn(3, classes, *spatial, generator=generator)
    return logits, torch.randint(0, max(classes, 2), (3, 1, *spatial), generator=generator)


def naive_segmentation(logits: Tensor) -> Tensor:
    result = torch.zeros(len(logits), 1, *logits.shape[2:], dtype=torch.long)
    for item, *voxel in torch.cartesian_prod(*(torch.arange(n) for n in result[:, 0].shape)).tolist():
        scores = logits[(item, slice(None), *voxel)].tolist()
        result[(item, 0, *voxel)] = int(scores[0] > 0) if len(scores) == 1 else scores.index(max(scores))
    return result


def naive_dice(predicted: Tensor, label: Tensor, value: int) -> float:
    truth = {i for i, other in enumerate(label.flatten().tolist()) if other == value}
    found = {i for i, other in enumerate(predicted.flatten().tolist()) if other == value}
    return 2 * len(truth & found) / (len(truth) + len(found)) if truth else math.nan


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 2)])
def test_equals_counting_voxels(classes: int, spatial: tuple[int, ...]) -> None:
    logits, label = batch(classes, spatial)
    label[1][label[1] == 1] = 0
    predicted = naive_segmentation(logits)
    expected = [[naive_dice(p, t, c) for c in range(1, max(classes, 2))] for p, t in zip(predicted, label, strict=True)]
    assert torch.equal(segmentation(logits), predicted)
    for kind in (torch.uint8, torch.float32):
        result = foreground_dice(logits, label.to(kind))
        torch.testing.assert_close(result, torch.tensor(expected), equal_nan=True)
    assert bool(result[1, 0].isnan())


def test_a_class_found_where_there_is_none_is_nan_and_a_missed_one_is_0() -> None:
    logits = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).view(2, 1, 2, 1)
    label = torch.tensor([[0, 0], [1, 0]]).view(2, 1, 2, 1)
    scores = foreground_dice(logits, label).flatten()
    assert math.isnan(scores[0])
    assert scores[1] == 0


def test_logit_0_is_background() -> None:
    assert segmentation(torch.tensor([-1.0, 0.0, 1e-6]).view(1, 1, 3)).flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_pair_is_one_hot(classes: int) -> None:
    logits, label = batch(classes, (4, 5))
    for one_hot, indices in zip(segmentation_pair(logits, label), (naive_segmentation(logits), label), strict=True):
        assert one_hot.shape == (3, max(classes, 2), 4, 5)
        assert set(one_hot.unique().tolist()) <= {0.0, 1.0}
        assert bool((one_hot.sum(dim=1) == 1).all())
        assert torch.equal(one_hot.argmax(dim=1, keepdim=True), indices)


def test_metatensors_give_what_tensors_give() -> None:
    logits, label = batch(3, (4, 5))
    result = foreground_dice(MetaTensor(logits), MetaTensor(label.float()))
    torch.testing.assert_close(torch.Tensor(result), foreground_dice(logits, label))
