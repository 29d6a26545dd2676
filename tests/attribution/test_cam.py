"""Class activation maps equal their papers' formulas, written as loops over channels and voxels."""

from __future__ import annotations

import itertools
from typing import Any

import captum.attr
import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.cam import CAM, GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM, LayerGradCAM
from unoise_monai.attribution.guided import GuidedBackprop
from unoise_monai.attribution.targets import Region, SoftDice, class_sum
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


def test_guided_grad_cam_refuses_other_activations_than_relu() -> None:
    network, image, target = nets.UNet(2, 1, 2, (2, 4), (2,)), picture(8, 8), region(8, 8)
    with pytest.raises(ValueError, match="network must have the activations that guided_backprop has a rule for"):
        GuidedGradCAM(network)(image, target)
    found = GuidedGradCAM(network, substitute=True)(image, target)
    assert found.meta["attribution"][0]["substituted"] == {"PReLU": 2}


@pytest.mark.parametrize("method", [*METHODS, GuidedGradCAM])
@pytest.mark.parametrize("dims", [2, 3])
def test_windows_equal_the_whole(method: type, dims: int) -> None:
    size = {2: (151, 11), 3: (93, 5, 7)}[dims]
    network, image = unet(dims), picture(*size).requires_grad_()
    volume = VolumeNetwork(network)
    budget = 0.65e-9 * volume._cost(image).bytes_per_voxel * volume.pad(image).numel()
    for target in (region(*size), SoftDice(region(*size).mask.long(), 1)):
        whole = method(network, sign="signed")(image, target).as_tensor()
        windows = method(network, sign="signed", memory_gb=budget)
        assert len(windows.volume.tiles(volume.pad(image)) or []) > 1
        assert float(whole.abs().max()) > 0
        scale = float(whole.abs().max())
        torch.testing.assert_close(windows(image, target).as_tensor(), whole, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("method", [*METHODS, GuidedGradCAM])
def test_batches_geometry_precision_and_one_channel(method: type) -> None:
    network, images = unet(3, classes=1), picture(5, 6, 8, batch=2)
    with torch.no_grad():
        target = class_sum(VolumeNetwork(network)(images), 1)
    cam = method(network, sign="signed")
    both = cam(MetaTensor(images, affine=AFFINE), target)
    torch.testing.assert_close(both.affine, AFFINE.double())
    for index in range(2):
        single = cam(images[index : index + 1], target.item(index))
        assert torch.equal(both.as_tensor()[index : index + 1], single.as_tensor())
    bf16 = method(network, sign="signed", precision="bf16")(images, target)
    assert bf16.dtype == torch.float32
    near = torch.corrcoef(torch.stack([bf16.as_tensor().flatten(), both.as_tensor().flatten()]))
    assert 0.9 < float(near[0, 1]) < 1


@pytest.mark.parametrize("method", [*METHODS, GuidedGradCAM])
def test_the_network_and_the_image_stay_as_they_were(method: type) -> None:
    network, image = unet(2).train(), picture(8, 6)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = image.clone()
    method(network)(image, region(8, 6))
    with pytest.raises(ValueError, match="one scalar an item"):
        method(network)(image, lambda logits: logits)
    assert torch.equal(image, before)
    assert not image.requires_grad
    assert all(module.training for module in network.modules())
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
    assert all(parameter.requires_grad for parameter in network.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in network.modules() for name in hooks)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
