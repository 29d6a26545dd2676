"""The objective against its formula, voxel by voxel."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from unoise_monai.losses import DualNoiseRatio, UNoiseLoss
from unoise_monai.losses.noise import utility_loss


def batch(classes: int, spatial: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, tolerance logits, label."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, *spatial, generator=generator)
    z = 3 * torch.randn(2, 1, *spatial, generator=generator)
    return logits, z, torch.randint(0, max(classes, 2), (2, 1, *spatial), generator=generator)


def naive(logits: Tensor, z: Tensor, label: Tensor, noise_ratio: float) -> float:
    terms = []
    for item, *voxel in product(range(len(label)), *map(range, label.shape[2:])):
        scores = logits[(item, slice(None), *voxel)].tolist()
        if len(scores) == 1:
            scores = [0.0, *scores]
        probability = math.exp(scores[int(label[(item, 0, *voxel)])]) / sum(map(math.exp, scores))
        tolerance = 1 / (1 + math.exp(-float(z[(item, 0, *voxel)])))
        terms.append(-math.log(probability) - noise_ratio * math.log(tolerance))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("noise_ratio", [0.0, 1e-3, 2.0])
def test_equals_the_formula(classes: int, spatial: tuple[int, ...], noise_ratio: float) -> None:
    logits, z, label = batch(classes, spatial)
    expected = naive(logits, z, label, noise_ratio)
    loss = UNoiseLoss(noise_ratio)
    for kind in (torch.uint8, torch.long, torch.float32):
        assert float(loss((logits, z), label.to(kind))) == pytest.approx(expected, rel=1e-5)


def test_without_a_noise_ratio_the_tolerance_does_not_matter() -> None:
    logits, z, label = batch(3)
    z.requires_grad_()
    loss = UNoiseLoss(0.0)((logits, z), label)
    assert loss.item() == utility_loss(logits, label).item()
    (gradient,) = torch.autograd.grad(loss, z)
    assert not bool(gradient.any())


def test_does_not_overflow_where_no_noise_is_tolerated() -> None:
    logits, z, label = batch(2)
    z = torch.full_like(z, -1000.0).requires_grad_()
    loss = UNoiseLoss(0.5)((logits, z), label)
    assert loss.item() == pytest.approx(utility_loss(logits, label).item() + 0.5 * 1000, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, -0.5 / z.numel()))


def test_half_precision_is_summed_in_float32() -> None:
    logits, z, label = batch(2)
    loss = UNoiseLoss(1.0)((logits.bfloat16(), z.bfloat16()), label)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(naive(logits.bfloat16(), z.bfloat16(), label, 1.0), rel=1e-5)


def test_follows_a_moving_noise_ratio() -> None:
    logits, z, label = batch(2)
    ratio = DualNoiseRatio(start=0.1, rate=1.0)
    loss = UNoiseLoss(ratio)
    assert float(loss((logits, z), label)) == pytest.approx(naive(logits, z, label, 0.1), rel=1e-5)
    moved = ratio.update(noised=0.1, clean=0.9)
    assert moved < 0.1
    assert float(loss((logits, z), label)) == pytest.approx(naive(logits, z, label, moved), rel=1e-5)
    assert "noise_ratio.log_ratio" in loss.state_dict()


@pytest.mark.parametrize("noise_ratio", [-1e-3, math.nan, math.inf])
def test_refuses_bad_ratios(noise_ratio: float) -> None:
    with pytest.raises(ValueError, match=f"noise_ratio must be a finite number of at least 0, got {noise_ratio}"):
        UNoiseLoss(noise_ratio)


@pytest.mark.parametrize("classes", [1, 2])
def test_refuses_labels_that_are_not_class_indices(classes: int) -> None:
    logits, z, label = batch(classes)
    for bad in (label[:, 0], label.repeat(1, 2, 1, 1), label[..., :-1], label[:1]):
        with pytest.raises(ValueError, match=r"target must hold class indices in one channel, \(2, 1, 3, 4\), got \("):
            UNoiseLoss()((logits, z), bad)
