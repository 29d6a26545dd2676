"""Class activation maps equal their papers' formulas, written as loops over channels and voxels."""

import itertools
from typing import Any

import captum.attr
import pytest
import torch
from small import picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.backpropagation import GuidedBackprop
from unoise_monai.attribution.layer_methods import (
    CAM,
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    LayerGradCAM,
)
from unoise_monai.attribution.targets import Region

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


METHODS = [GradCAM, LayerGradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("path", ["encoder.0", "encoder.1", "decoder.0"])
@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
def test_captum_s_grad_cam(method: type[CAM]) -> None:
    network, image, target = unet(2), picture(8, 6), region(8, 6)
    expected = captum.attr.LayerGradCam(lambda x: target(network(x)), network.encoder[0]).attribute(image).detach()
    found = method(network, "encoder.0", sign="signed")(image, target).as_tensor()
    assert torch.allclose(found, expected, rtol=1e-5) == (method in (GradCAM, LayerGradCAM))


def test_guided_grad_cam_is_the_product() -> None:
    network, image, target = unet(2), picture(9, 7), region(9, 7)
    cam = GradCAM(network)(image, target).as_tensor()
    guided = GuidedBackprop(network, sign="signed")(image, target).as_tensor()
    found = GuidedGradCAM(network, sign="signed")(image, target)
    assert float(found.abs().max()) > 0
    torch.testing.assert_close(found.as_tensor(), cam * guided)
    torch.testing.assert_close(GuidedGradCAM(network)(image, target).as_tensor(), (cam * guided).abs())
    assert found.meta["attribution"][0]["layer"] == "encoder.1"
