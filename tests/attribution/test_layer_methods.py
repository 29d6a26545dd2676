"""Methods at a layer equal formulas and passes by hand, and contributions add up to what the layer changes."""

import itertools
from typing import Any

import captum.attr
import pytest
import torch
from monai.networks import nets
from small import picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.backpropagation import GuidedBackprop
from unoise_monai.attribution.base import baseline
from unoise_monai.attribution.layer_methods import (
    CAM,
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    InternalInfluence,
    LayerCAM,
    LayerConductance,
    LayerDeepLift,
    LayerGradCAM,
    LayerGuidedActivation,
    LayerGuidedBackprop,
    LayerIntegratedGradients,
    LayerPath,
)
from unoise_monai.attribution.targets import Region, SoftDice
from unoise_monai.inference.tiling import VolumeNetwork

SIZES = {2: (8, 6), 3: (4, 6, 8)}


def by_hand(network: nn.Module, path: str, image: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """A layer's features and the target's gradient with respect to them."""
    kept: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = target(network(image))
    handle.remove()
    return kept[0].detach()[0], torch.autograd.grad(score.sum(), kept[0])[0][0]


def naive(method: type[CAM], features: Tensor, gradients: Tensor) -> Tensor:
    """What goes into the ReLU, channel by channel and voxel by voxel."""
    places = list(itertools.product(*map(range, features.shape[1:])))
    found = torch.zeros(features.shape[1:])
    for channel in range(len(features)):
        value = {place: float(features[(channel, *place)]) for place in places}
        slope = {place: float(gradients[(channel, *place)]) for place in places}
        weight = 0.0
        if method in (GradCAM, LayerGradCAM):
            weight = sum(slope.values()) / len(places)
        if method is GradCAMPlusPlus:
            for place in places:
                if slope[place] != 0:
                    below = 2 * slope[place] ** 2 + sum(value.values()) * slope[place] ** 3
                    weight += slope[place] ** 2 / below * max(slope[place], 0.0)
        for place in places:
            if method is HiResCAM:
                weight = slope[place]
            if method is LayerCAM:
                weight = max(slope[place], 0.0)
            found[place] += weight * value[place]
    return found


CAMS = [GradCAM, LayerGradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("path", ["encoder.0", "encoder.1", "decoder.0"])
@pytest.mark.parametrize("method", CAMS)
def test_cam_is_its_formula(dims: int, path: str, method: type[CAM]) -> None:
    network, image, target = unet(dims), picture(*SIZES[dims]), region(*SIZES[dims])
    signed = naive(method, *by_hand(network, path, image, target))[None, None]
    mode = "bilinear" if dims == 2 else "trilinear"
    assert float(signed.abs().max()) > 0
    expected = {"signed": signed, "absolute": signed.abs(), "positive": signed.clamp_min(0)}
    for sign, values in expected.items():
        finer = F.interpolate(values, SIZES[dims], mode=mode)
        found = method(network, path, sign=sign)(image, target).as_tensor()
        torch.testing.assert_close(found, finer, rtol=1e-4, atol=1e-5 * float(finer.abs().max()))


def test_the_default_is_the_papers_relu_at_the_bottleneck() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    for method in (GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM):
        found = method(network)(image, target)
        assert torch.equal(found.as_tensor(), method(network, "encoder.1", sign="positive")(image, target).as_tensor())
    assert LayerGradCAM(network).sign == "signed"


def test_hires_cam_before_the_head_is_each_voxel_s_contribution() -> None:
    network, image, target = unet(3), picture(4, 6, 8), region(4, 6, 8)
    found = HiResCAM(network, "decoder.0", sign="signed")(image, target).as_tensor()
    with torch.no_grad():
        logits = network(image)[:, 1:2] - network.head.bias[1]
    torch.testing.assert_close(found, logits * target.mask / target.mask.sum())


def test_grad_cam_plus_plus_refuses_negative_features() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    says = r"layer must give features of at least 0, such as those after a ReLU, for grad_cam_plus_plus, got -\d"
    with pytest.raises(ValueError, match=says):
        GradCAMPlusPlus(network, "encoder.0.0")(image, target)
    assert float(GradCAM(network, "encoder.0.0")(image, target).max()) > 0


@pytest.mark.parametrize("method", CAMS)
def test_one_pass_forward_and_back(method: type[CAM]) -> None:
    network, image = unet(2), picture(40, 6)
    method(network)(image, region(40, 6))  # what a pass takes is measured
    passes: list[str] = []
    network.head.register_forward_hook(
        lambda module, inputs, output: passes.append("forward") if output.shape[2] == 40 else None
    )
    network.head.register_full_backward_hook(lambda *_: passes.append("back"))
    method(network)(image, region(40, 6))
    assert passes == ["forward", "back"]


def test_the_cam_of_a_region_reaches_no_further_than_the_network() -> None:
    network, image = unet(2), picture(64, 6)
    mask = torch.zeros(1, 1, 64, 6, dtype=torch.bool)
    mask[:, :, 4] = True
    found = HiResCAM(network, sign="absolute")(image, Region(mask, 1))
    # A layer's voxel shows as far as the centre of its neighbours.
    beyond = 4 + network.halo + network.stride
    assert float(found[..., :beyond, :].max()) > 0
    assert float(found[..., beyond:, :].max()) == 0


def test_guided_grad_cam_is_the_product() -> None:
    network, image, target = unet(2), picture(9, 7), region(9, 7)
    cam = GradCAM(network)(image, target).as_tensor()
    guided = GuidedBackprop(network, sign="signed")(image, target).as_tensor()
    found = GuidedGradCAM(network, sign="signed")(image, target)
    assert float(found.abs().max()) > 0
    torch.testing.assert_close(found.as_tensor(), cam * guided)
    torch.testing.assert_close(GuidedGradCAM(network)(image, target).as_tensor(), (cam * guided).abs())
    assert found.meta["attribution"][0]["layer"] == "encoder.1"


class Chain(nn.Module):
    """Three convolutions, ReLU in between."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stride = stride
        self.first, self.second, self.third = (
            nn.Conv2d(channels, out, 3, padding=1) for channels, out in ((1, 3), (3, 4), (4, 2))
        )
        self.one, self.two = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.two(self.second(self.one(self.first(x)))))


def back(convolution: nn.Conv2d, upstream: Tensor) -> Tensor:
    return F.conv_transpose2d(upstream, convolution.weight.detach(), padding=1)


def guided(before: Tensor, upstream: Tensor) -> Tensor:
    """Back through a ReLU: where it was open and what comes is positive."""
    return upstream.clamp_min(0) * (before > 0)


def test_the_backward_pass_to_a_layer_by_hand() -> None:
    network, image, target = Chain(), picture(6, 5), region(6, 5)
    with torch.no_grad():
        first = network.first(image)
        second = network.second(first.relu())
    upstream = torch.zeros(1, 2, 6, 5)
    upstream[:, 1:] = target.mask / target.mask.sum()
    expected = {"two": back(network.third, upstream)}
    expected["second"] = guided(second, expected["two"])
    expected["one"] = back(network.second, expected["second"])
    expected["first"] = guided(first, expected["one"])
    for path, gradient in expected.items():
        found = LayerGuidedBackprop(network, path, sign="signed")(image, target).as_tensor()
        torch.testing.assert_close(found, gradient.sum(dim=1, keepdim=True))
        found = LayerGuidedBackprop(network, path)(image, target).as_tensor()
        torch.testing.assert_close(found, gradient.abs().sum(dim=1, keepdim=True))


def test_the_backward_pass_from_a_layer_by_hand() -> None:
    network, image, target = Chain(), picture(6, 5), region(6, 5)
    with torch.no_grad():
        first = network.first(image)
        second = network.second(first.relu())
    expected = {
        "first": back(network.first, first.sign()),
        "second": back(network.first, guided(first, back(network.second, second.sign()))),
        "two": back(network.first, guided(first, back(network.second, guided(second, torch.ones_like(second))))),
    }
    for path, gradient in expected.items():
        found = LayerGuidedActivation(network, path, sign="signed")(image, target).as_tensor()
        torch.testing.assert_close(found, gradient)
    other = LayerGuidedActivation(network, "two", sign="signed")(image, SoftDice(target.mask.long(), 1)).as_tensor()
    torch.testing.assert_close(other, expected["two"])


def test_what_reaches_the_padding_belongs_to_the_border() -> None:
    image, target = picture(6, 5), region(6, 5)
    found = LayerGuidedActivation(Chain(stride=4), "second", sign="signed")(image, target).as_tensor()
    padded = F.pad(image, [0, 3, 0, 2], mode="replicate")
    wide = LayerGuidedActivation(Chain(), "second", sign="signed")(padded, region(8, 8)).as_tensor()
    expected = wide[..., :6, :5].clone()
    expected[..., 5, :4] = wide[..., 5:, :4].sum(dim=2)
    expected[..., :5, 4] = wide[..., :5, 4:].sum(dim=3)
    expected[..., 5, 4] = wide[..., 5:, 4:].sum(dim=(2, 3))
    torch.testing.assert_close(found, expected)


def test_the_rescale_rule_by_hand() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    network = nn.Sequential(first, nn.ReLU(inplace=True), second)
    image, target = picture(6, 5), region(6, 5)
    start = torch.full_like(image, 0.3)
    with torch.no_grad():
        features, before = first(image), first(start)
        slope = (features.relu() - before.relu()) / (features - before)
    opened = features.relu().requires_grad_()
    (gradient,) = torch.autograd.grad(target(second(opened)).sum(), opened)
    expected = ((features - before) * slope * gradient).sum(dim=1, keepdim=True)
    found = LayerDeepLift(network, "0", baseline=0.3, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected)


@pytest.mark.parametrize("size", [(8, 6), (4, 6, 8)])
@pytest.mark.parametrize("path", ["encoder.0", "decoder.0"])
def test_a_layer_that_all_goes_through_sums_to_the_difference(size: tuple[int, ...], path: str) -> None:
    network, image, target = unet(len(size)), picture(*size), region(*size)
    with torch.no_grad():
        difference = float(target(network(image)) - target(network(torch.zeros_like(image))))
    found = LayerDeepLift(network, path, sign="signed")(image, target)
    assert abs(difference) > 0.01
    assert float(found.sum()) == pytest.approx(difference, rel=1e-3)
    note = found.meta["attribution"][0]
    assert note["score_difference"] == pytest.approx(difference, abs=1e-5)
    assert abs(note["convergence_delta"]) < 1e-4


PATHS = [LayerConductance, LayerIntegratedGradients, InternalInfluence]


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


def test_conductance_by_hand() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    steps = [by_hand(network, "encoder.0", step / 5 * image, target) for step in range(6)]
    parts = [slopes * (after - before) for (before, slopes), (after, _) in itertools.pairwise(steps)]
    found = LayerConductance(network, "encoder.0", steps=5, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor()[0, 0], torch.stack(parts).sum(dim=(0, 1)))


def test_influence_is_the_mean_gradient_along_the_path() -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    slopes = [by_hand(network, "decoder.0.up", (step + 0.5) / 4 * image, target)[1] for step in range(4)]
    expected, options = torch.stack(slopes).mean(dim=0), {"steps": 4, "rule": "riemann_middle"}
    for sign, values in {"signed": expected, "absolute": expected.abs()}.items():
        found = InternalInfluence(network, "decoder.0.up", sign=sign, **options)(image, target)
        torch.testing.assert_close(found.as_tensor()[0, 0], values.sum(dim=0))
        assert "convergence_delta" not in found.meta["attribution"][0]


@pytest.mark.parametrize("method", PATHS)
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
