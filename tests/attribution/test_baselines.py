"""Baselines have the statistics that their names say, of each item and channel."""

import math
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.base import BASELINES, baseline, baselines, check_baseline, check_baselines


def image(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 10.0]).view(2, 1, *[1] * len(size))
    shift = torch.tensor([3.0, -2.0]).view(1, 2, *[1] * len(size))
    return scale * torch.randn(2, 2, *size, generator=generator) + shift


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("size", [(9, 7), (5, 6, 7)])
def test_of_the_image_s_shape_and_of_each_item_alone(kind: str, size: tuple[int, ...]) -> None:
    x = image(*size).requires_grad_()
    result = baseline(x, kind)
    assert result.shape == x.shape
    assert not result.requires_grad
    torch.testing.assert_close(baseline(x[1:], kind), result[1:])
    of_meta = baseline(MetaTensor(x.detach()), kind)
    assert type(of_meta) is Tensor
    torch.testing.assert_close(of_meta, result)


def test_statistics_of_each_item_and_channel() -> None:
    x = image(60, 50)
    assert not baseline(x, "zero").any()
    noise = baseline(x, "noise")
    for item in range(2):
        for channel in range(2):
            values = x[item, channel]
            assert baseline(x, "mean")[item, channel].unique().tolist() == pytest.approx([float(values.mean())])
            assert baseline(x, "minimum")[item, channel].unique().tolist() == [float(values.min())]
            drawn = noise[item, channel]
            assert float(drawn.mean()) == pytest.approx(float(values.mean()), abs=5 * float(values.std()) / 3000**0.5)
            assert float(drawn.std()) == pytest.approx(float(values.std()), rel=0.1)


def test_the_blur_is_the_mean_of_the_voxels_inside() -> None:
    x = image(13, 11)
    sigma, axes = 1.5, [torch.arange(13.0), torch.arange(11.0)]
    # MONAI's filter integrates the Gaussian over each voxel, within four sigma.
    weights = []
    for at in axes:
        away = at[:, None] - at[None]
        edge = [torch.erf((away + half) / (sigma * math.sqrt(2))) for half in (0.5, -0.5)]
        weights.append((edge[0] - edge[1]) * (away.abs() <= 6))
    expected = torch.einsum("ij,bcjk,lk->bcil", weights[0] / weights[0].sum(1, True), x, weights[1])
    expected = expected / weights[1].sum(dim=1)
    torch.testing.assert_close(baseline(x, "blur", sigma=sigma), expected, rtol=1e-3, atol=1e-3)
    flat = torch.full((1, 1, 20, 20), 7.0)
    torch.testing.assert_close(baseline(flat, "blur"), flat)


def test_numbers_and_images_of_one_s_own() -> None:
    x = image(4, 3)
    assert baseline(x, -1.5).unique().tolist() == [-1.5]
    mine = MetaTensor(torch.randn(1, 2, 4, 3, dtype=torch.float64))
    result = baseline(x, mine)
    assert type(result) is Tensor
    torch.testing.assert_close(result, mine.as_tensor().float().expand(2, -1, -1, -1))
    mine = torch.ones(x.shape)
    baseline(x, mine).zero_()
    assert mine.all()


def test_noise_comes_from_the_seed_alone() -> None:
    x = image(4, 3)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = baseline(x, "noise", seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, baseline(x, "noise", seed=3))
    assert not torch.equal(first, baseline(x, "noise", seed=4))
    assert not torch.equal(baseline(x, "noise", seed=None), baseline(x, "noise", seed=None))


def test_a_distribution() -> None:
    x = image(4, 3)
    zero, first, second = baselines(x, ("zero", "noise", "noise"), seed=0)
    assert not zero.any()
    assert not torch.equal(first, second)
    assert torch.equal(first, baseline(x, "noise", seed=1))
    stack = torch.randn(3, 2, 4, 3)
    kinds = check_baselines(stack)
    assert len(kinds) == 3
    torch.testing.assert_close(torch.stack(baselines(x, kinds)), stack[:, None].expand(3, 2, 2, 4, 3))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: baseline(image(4, 3), "black"),
            "must be one of 'zero', 'mean', 'minimum', 'blur', 'noise', got 'black'",
        ),
        (lambda: baseline(image(4, 3), "blur", sigma=0.0), "sigma must be a finite number above 0, got 0.0"),
        (lambda: check_baseline(math.nan), "baseline must hold finite values only, got 1 NaN or infinite of 1"),
        (
            lambda: baseline(image(4, 3), torch.zeros(1, 1, 3, 4)),
            "must expand to the image (2, 2, 4, 3), got (1, 1, 3, 4)",
        ),
        (lambda: check_baselines(()), "baselines must be one or more of 'zero', 'mean'"),
        (lambda: check_baselines("zero"), "baselines must be one or more of 'zero', 'mean', 'minimum', 'blur', 'noise"),
        (lambda: check_baselines(("zero", "grey")), "baseline must be one of"),
    ],
)
def test_refusals(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        call()
