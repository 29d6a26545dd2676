"""Smoothed maps against a loop, Captum's own, and what noise does to linear networks."""

from typing import Any

import captum.attr
import pytest
import torch
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution.backpropagation import GuidedBackprop
from unoise_monai.attribution.base import seeded
from unoise_monai.attribution.composed import NoisyMaps, SmoothGrad, SmoothGradSquared, VarGrad
from unoise_monai.attribution.gradient import IntegratedGradients
from unoise_monai.attribution.targets import Region

SIZE = (8, 6)
IMAGE = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1, mean=False)
CHEAP = {"integrated_gradients": {"steps": 5}, "gradient_shap": {"samples": 4}}
GRADIENT_METHODS = NoisyMaps.methods()
CLASSES = [SmoothGrad, SmoothGradSquared, VarGrad]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1))


def gradient(network: nn.Module, image: Tensor) -> Tensor:
    copy = image.clone().requires_grad_()
    return torch.autograd.grad(TARGET(network(copy)).sum(), copy)[0]


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_without_noise_it_is_the_method(method: str) -> None:
    network, options = unet(2, channels=2), CHEAP.get(method, {})
    inner = GRADIENT_METHODS[method](network, **options)
    expected = inner(IMAGE, TARGET)
    maps = SmoothGrad(network, method, samples=3, sigma=0.0, method_options=options)(IMAGE, TARGET)
    assert torch.equal(maps.as_tensor(), expected.as_tensor())
    kept = {key: value for key, value in expected.meta["attribution"][0].items() if key != "method"}
    assert maps.meta["attribution"][0] == {**kept, "method": "smooth_grad", "samples": 3}
    variance = VarGrad(network, inner, samples=3, sigma=0.0)(IMAGE, TARGET)
    assert not variance.any()


def noisy(samples: int, sigma: float = 0.15, seed: int = 0) -> list[Tensor]:
    with seeded(seed, IMAGE.device):
        return [IMAGE + sigma * torch.randn_like(IMAGE) for _ in range(samples)]


def test_equals_the_loop_over_noisy_copies() -> None:
    network = unet(2, channels=2)
    maps = torch.cat([gradient(network, copy) for copy in noisy(6, 0.4, seed=3)])
    options: dict[str, Any] = {"samples": 6, "sigma": 0.4, "seed": 3, "sign": "signed"}
    for method, expected in (
        (SmoothGrad, maps.mean(dim=0)),
        (SmoothGradSquared, maps.square().mean(dim=0)),
        (VarGrad, maps.var(dim=0, correction=0)),
    ):
        result = method(network, **options)(IMAGE, TARGET)
        torch.testing.assert_close(result.as_tensor(), expected[None].sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "kind"), [(SmoothGrad, "smoothgrad"), (SmoothGradSquared, "smoothgrad_sq"), (VarGrad, "vargrad")]
)
def test_equals_captum_s_one_copy_at_a_time(method: type[NoisyMaps], kind: str) -> None:
    network = unet(2, channels=2)
    tunnel = captum.attr.NoiseTunnel(captum.attr.InputXGradient(lambda x: TARGET(network(x))))
    with seeded(0, IMAGE.device):
        copy = IMAGE.clone().requires_grad_()
        expected = tunnel.attribute(copy, nt_type=kind, nt_samples=5, nt_samples_batch_size=1, stdevs=0.3)
    maps = method(network, "input_x_gradient", samples=5, sigma=0.3, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected.detach().sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", CLASSES)
def test_the_noise_does_not_depend_on_the_memory(method: type[NoisyMaps]) -> None:
    network = unet(2, channels=2)
    for inner in ("guided_backprop", "deep_lift", "gradient_shap"):
        alone, many = (
            method(network, inner, samples=5, method_options=CHEAP.get(inner), memory_gb=memory_gb)
            for memory_gb in (None, 0.0002)
        )
        assert 4 < many.volume.copies(IMAGE) < 10
        expected = alone(IMAGE, TARGET).as_tensor()
        # The variance is of values whose own rounding is of the order of 1e-7 of them.
        torch.testing.assert_close(many(IMAGE, TARGET).as_tensor(), expected, rtol=1e-3, atol=1e-5)


def test_a_linear_network_has_one_gradient() -> None:
    network = linear()
    expected = gradient(network, IMAGE)
    for method, value in ((SmoothGrad, expected), (SmoothGradSquared, expected.square()), (VarGrad, 0 * expected)):
        maps = method(network, sign="signed", samples=4)(IMAGE, TARGET)
        torch.testing.assert_close(maps.as_tensor(), value.sum(dim=1, keepdim=True))


def test_the_noise_has_the_sigma_that_is_asked_for() -> None:
    # Input times the gradient of a linear network: its variance is that of the noise, times the gradient squared.
    network = linear()
    weight = gradient(network, IMAGE)
    maps = VarGrad(network, "input_x_gradient", samples=400, sigma=0.5)(IMAGE, TARGET).as_tensor()
    ratio = maps / (0.25 * weight.square().sum(dim=1, keepdim=True))
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


def test_the_rules_hold_within_the_samples() -> None:
    network = unet(2, channels=2)
    guided = SmoothGrad(network, "guided_backprop", samples=4)(IMAGE, TARGET).as_tensor()
    assert not torch.allclose(guided, SmoothGrad(network, samples=4)(IMAGE, TARGET).as_tensor())
    by_hand = [GuidedBackprop(network, sign="signed")(copy, TARGET).as_tensor() for copy in noisy(4)]
    signed = SmoothGrad(network, "guided_backprop", samples=4, sign="signed")(IMAGE, TARGET).as_tensor()
    torch.testing.assert_close(signed, torch.stack(by_hand).mean(dim=0))


def test_notes_are_the_means_of_the_samples() -> None:
    network = unet(2, channels=2)
    notes = SmoothGrad(network, IntegratedGradients, samples=3, method_options={"steps": 4})(IMAGE, TARGET)
    singles = [IntegratedGradients(network, 4)(copy, TARGET).meta["attribution"][0] for copy in noisy(3)]
    mean = sum(single["convergence_delta"] for single in singles) / 3
    assert notes.meta["attribution"][0]["convergence_delta"] == pytest.approx(mean, rel=1e-3)


def test_a_mean_of_contributions_is_one_and_a_variance_is_none() -> None:
    network = unet(2, channels=2)
    for inner, contributes in (("integrated_gradients", True), ("saliency", False)):
        assert SmoothGrad(network, inner).contributes is contributes
        assert not SmoothGradSquared(network, inner).contributes
        assert not VarGrad(network, inner).contributes
