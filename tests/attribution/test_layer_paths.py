"""Contributions of a layer add up to what its features change, in one window or several."""

import warnings
from typing import Any

import captum.attr
import pytest
import torch
from monai.networks import nets
from small import picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution.base import baseline
from unoise_monai.attribution.layer_methods import (
    InternalInfluence,
    LayerConductance,
    LayerIntegratedGradients,
    LayerPath,
)
from unoise_monai.inference.tiling import VolumeNetwork

METHODS = [LayerConductance, LayerIntegratedGradients, InternalInfluence]
SIZES = {2: (8, 6), 3: (4, 6, 8)}
LONG = {2: (151, 11), 3: (93, 5, 7)}


def scores(network: nn.Module, image: Tensor, start: Tensor, path: str, target: Any) -> tuple[float, float, float]:
    """Of the image, of the baseline, and of the image with the layer's features of the baseline."""
    layer = network.get_submodule(path)
    kept: list[Tensor] = []
    with torch.no_grad():
        first = target(network(image))
        handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
        second = target(network(start))
        handle.remove()
        handle = layer.register_forward_hook(lambda module, inputs, output: kept[0].clone())
        third = target(network(image))
        handle.remove()
    return float(first), float(second), float(third)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("path", ["encoder.0", "encoder.1", "decoder.0"])
def test_integrated_gradients_sum_to_what_the_layer_changes(dims: int, path: str) -> None:
    network, image, target = unet(dims), picture(*SIZES[dims]), region(*SIZES[dims])
    start = baseline(image, "blur")
    after, before, without = scores(network, image, start, path, target)
    found = LayerIntegratedGradients(network, path, steps=200, baseline="blur", sign="signed")(image, target)
    note = found.meta["attribution"][0]
    assert note["score_difference"] == pytest.approx(after - without, abs=1e-5)
    assert abs(note["convergence_delta"]) < 0.01 * abs(after - without)
    if path == "encoder.1":
        assert abs(without - before) > 0.01
    else:
        assert without == pytest.approx(before, abs=1e-5)
        # At full resolution the map is the layer's own.
        assert float(found.sum()) == pytest.approx(after - without, rel=0.01)


def test_integrated_gradients_of_a_residual_layer_sum_to_what_it_changes() -> None:
    torch.manual_seed(0)
    network = nets.SegResNet(2, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,)).eval()
    image, target, path = picture(8, 8), region(8, 8), "down_layers.0.1.conv2"
    after, _, without = scores(network, image, torch.zeros_like(image), path, target)
    found = LayerIntegratedGradients(network, path, steps=100, sign="signed")(image, target)
    note = found.meta["attribution"][0]
    assert note["score_difference"] == pytest.approx(after - without, abs=1e-5)
    assert abs(note["convergence_delta"]) < 0.02 * abs(after - without)


@pytest.mark.parametrize("dims", [2, 3])
def test_conductance_of_a_layer_that_all_goes_through_sums_to_the_difference(dims: int) -> None:
    network, image, target = unet(dims), picture(*SIZES[dims]), region(*SIZES[dims])
    for path in ("encoder.0", "decoder.0"):
        after, before, _ = scores(network, image, torch.zeros_like(image), path, target)
        found = LayerConductance(network, path, steps=200, sign="signed")(image, target)
        assert float(found.sum()) == pytest.approx(after - before, rel=0.02)
        note = found.meta["attribution"][0]
        assert note["score_difference"] == pytest.approx(after - before, abs=1e-5)
        assert note["convergence_delta"] == pytest.approx(float(found.sum()) - (after - before), abs=1e-5)
        # Of the signed values, whatever the sign of the map.
        absolute = LayerConductance(network, path, steps=200)(image, target).meta["attribution"][0]
        assert absolute["convergence_delta"] == pytest.approx(note["convergence_delta"], abs=1e-6)


def test_conductance_asks_captum_for_pairs_of_steps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerConductance(unet(2), steps=3)(picture(8, 6), region(8, 6))


def test_conductance_by_hand() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    kept: list[Tensor] = []
    network.encoder[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    expected: Any = 0.0
    before = None
    for step in range(6):
        score = target(network(step / 5 * image))
        (gradient,) = torch.autograd.grad(score.sum(), kept[-1])
        if before is not None:
            expected = expected + before[1] * (kept[-1].detach() - before[0])
        before = kept[-1].detach(), gradient
    network.encoder[0]._forward_hooks.clear()
    found = LayerConductance(network, "encoder.0", steps=5, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected.sum(dim=1, keepdim=True))


def test_influence_is_the_mean_gradient_along_the_path() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    kept: list[Tensor] = []
    network.decoder[0].up.register_forward_hook(lambda module, inputs, output: kept.append(output))
    expected: Any = 0.0
    for step in range(4):
        score = target(network((step + 0.5) / 4 * image))
        expected = expected + torch.autograd.grad(score.sum(), kept[-1])[0] / 4
    network.decoder[0].up._forward_hooks.clear()
    options: dict[str, Any] = {"steps": 4, "rule": "riemann_middle"}
    for sign, values in {"signed": expected, "absolute": expected.abs()}.items():
        found = InternalInfluence(network, "decoder.0.up", sign=sign, **options)(image, target)
        torch.testing.assert_close(found.as_tensor(), values.sum(dim=1, keepdim=True))
        assert "convergence_delta" not in found.meta["attribution"][0]


@pytest.mark.parametrize("method", METHODS)
def test_captum_does_the_same_in_one_go(method: type[LayerPath]) -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    oracle = getattr(captum.attr, method.__name__)(lambda x: target(network(x)), network.encoder[0])
    expected = oracle.attribute(image, n_steps=7, method=method.rules[0]).detach().sum(dim=1, keepdim=True)
    found = method(network, "encoder.0", steps=7, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected, rtol=1e-4, atol=1e-6)
    # With room for three copies at once, the steps go in groups.
    with torch.enable_grad():
        need = VolumeNetwork(network)._cost(image.requires_grad_()).bytes_per_voxel * image.numel()
    grouped = method(network, "encoder.0", steps=7, sign="signed", memory_gb=3.5e-9 * need)
    assert grouped.volume.copies(image) == 3
    torch.testing.assert_close(grouped(image, target).as_tensor(), expected, rtol=1e-4, atol=1e-6)


def test_a_baseline_of_your_own() -> None:
    network, image, target = unet(2), picture(9, 6), region(9, 6)
    found = LayerConductance(network, baseline=image.clone())(image, target)
    assert float(found.abs().max()) == 0
    zero, blurred = (LayerConductance(network, baseline=kind)(image, target) for kind in ("zero", "blur"))
    assert not torch.equal(zero.as_tensor(), blurred.as_tensor())
    noise = [LayerConductance(network, baseline="noise", seed=seed)(image, target).as_tensor() for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
