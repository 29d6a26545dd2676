"""Guided backpropagation to a layer, and from one, equals a backward pass written by hand."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.layer_methods import LayerGuidedActivation, LayerGuidedBackprop
from unoise_monai.attribution.targets import SoftDice
from unoise_monai.inference.tiling import VolumeNetwork

METHODS = [LayerGuidedBackprop, LayerGuidedActivation]


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


@pytest.mark.parametrize("method", METHODS)
def test_other_activations_are_refused_or_substituted(method: type[LayerGuidedBackprop]) -> None:
    torch.manual_seed(0)
    network, image, target = nets.UNet(2, 1, 2, (2, 4), (2,)), picture(8, 8), region(8, 8)
    with pytest.raises(ValueError, match=f"network must have the activations that {method.name} has a rule for"):
        method(network)(image, target)
    found = method(network, "model.0", substitute=True)(image, target)
    assert found.meta["attribution"][0]["substituted"] == {"PReLU": 2}
    assert float(found.max()) > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(151, 11), (93, 5, 7)])
@pytest.mark.parametrize("path", ["encoder.0", "bottleneck", "decoder.0"])
def test_windows_equal_the_whole(method: type[LayerGuidedBackprop], size: tuple[int, ...], path: str) -> None:
    network, image = unet(len(size)), picture(*size).requires_grad_()
    volume = VolumeNetwork(network)
    budget = 0.65e-9 * volume._cost(image).bytes_per_voxel * volume.pad(image).numel()
    for target in (region(*size), SoftDice(region(*size).mask.long(), 1)):
        whole = method(network, path, sign="signed")(image, target).as_tensor()
        windows = method(network, path, sign="signed", memory_gb=budget)
        assert windows.volume.tiles(volume.pad(image)) is not None
        scale = float(whole.abs().max())
        assert scale > 0
        torch.testing.assert_close(windows(image, target).as_tensor(), whole, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_batches_geometry_and_precision(method: type[LayerGuidedBackprop]) -> None:
    network, images, target = unet(3), picture(5, 6, 7, batch=2), region(5, 6, 7)
    both = method(network)(MetaTensor(images, affine=AFFINE), target)
    torch.testing.assert_close(both.affine, AFFINE.double())
    for index in range(2):
        single = method(network)(images[index : index + 1], target)
        assert torch.equal(both.as_tensor()[index : index + 1], single.as_tensor())
    bf16 = method(network, precision="bf16")(images, target)
    near = torch.corrcoef(torch.stack([bf16.as_tensor().flatten(), both.as_tensor().flatten()]))
    assert 0.9 < float(near[0, 1]) < 1


@pytest.mark.parametrize("method", METHODS)
def test_the_network_stays_as_it_was(method: type[LayerGuidedBackprop]) -> None:
    network, image, target = Chain(), picture(6, 5), region(6, 5)
    method(network, "second")(image, target)
    with pytest.raises(ValueError, match="one scalar an item"):
        method(network, "second")(image, lambda logits: logits)
    assert all(module.training for module in network.modules())
    assert network.one.inplace
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in network.modules() for name in hooks)
