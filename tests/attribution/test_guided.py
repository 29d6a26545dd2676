"""Clipped gradients against passes back by hand, and the networks on which they would be plain gradients."""

from __future__ import annotations

from typing import Any

import captum.attr
import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.guided import ClippedGradient, Deconvolution, GuidedBackprop
from unoise_monai.attribution.targets import Region
from unoise_monai.networks import UNet


def whole(*size: int) -> Region:
    return Region(torch.ones(1, 1, *size), 1, mean=False)


class Shallow(nn.Module):
    """Convolution, activation, convolution, optionally with the activation's input added to what it gives."""

    def __init__(self, act: nn.Module, spatial_dims: int = 2, skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first, self.last = conv(2, 3, 3, padding=1), conv(3, 2, 3, padding=1)
        self.act, self.skip = act, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.act(x) + x if self.skip else self.act(x))


def by_hand(network: Shallow, image: Tensor, deconvolution: bool, slope: float = 0.0) -> Tensor:
    """The pass back of the sum of class 1's logits, layer by layer."""
    dims = image.ndim - 2
    back = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    with torch.no_grad():
        hidden = network.first(image)
        top = torch.zeros(1, 2, *image.shape[2:])
        top[:, 1] = 1
        upstream = back(top, network.last.weight, padding=1)
        plain = upstream * torch.where(hidden > 0, 1.0, slope)
        clipped = (upstream if deconvolution else plain).clamp_min(0)
        if network.skip:
            clipped = clipped + upstream
        return back(clipped, network.first.weight, padding=1).sum(dim=1, keepdim=True)


METHODS = [(GuidedBackprop, False), (Deconvolution, True)]


@pytest.mark.parametrize(("method", "deconvolution"), METHODS)
@pytest.mark.parametrize("size", [(6, 5), (4, 5, 6)])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_equals_the_pass_by_hand(
    method: type[ClippedGradient], deconvolution: bool, size: tuple[int, ...], skip: bool, inplace: bool
) -> None:
    network, image = Shallow(nn.ReLU(inplace), len(size), skip), torch.randn(1, 2, *size)
    result = method(network, sign="signed")(image, whole(*size)).as_tensor()
    torch.testing.assert_close(result, by_hand(network, image, deconvolution))
    assert not torch.allclose(result, Saliency(network, sign="signed")(image, whole(*size)).as_tensor())


@pytest.mark.parametrize(
    ("method", "reference"), [(GuidedBackprop, "GuidedBackprop"), (Deconvolution, "Deconvolution")]
)
def test_equals_captum_where_no_relu_s_input_goes_elsewhere(method: type[ClippedGradient], reference: str) -> None:
    torch.manual_seed(0)
    network, image = UNet(3, 1, 3, depth=3, channel_factor=2).eval(), torch.randn(1, 1, 8, 12, 8)
    score = nn.Sequential(network, Summing())
    with pytest.warns(UserWarning, match="Setting backward hooks on ReLU"):
        expected = getattr(captum.attr, reference)(score).attribute(image.clone().requires_grad_())
    torch.testing.assert_close(method(network, sign="signed")(image, whole(8, 12, 8)).as_tensor(), expected)


class Summing(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, 1].flatten(1).sum(dim=1)


@pytest.mark.parametrize(("method", "deconvolution"), METHODS)
def test_substitutes_say_so(method: type[ClippedGradient], deconvolution: bool) -> None:
    network, image = Shallow(nn.PReLU(init=0.3)), torch.randn(1, 2, 6, 5)
    with pytest.raises(ValueError, match=rf"{method.name} has a rule for, got PReLU x 1, the first at 'act'"):
        method(network)(image, whole(6, 5))
    result = method(network, substitute=True, sign="signed")(image, whole(6, 5))
    torch.testing.assert_close(result.as_tensor(), by_hand(network, image, deconvolution, slope=0.3))
    assert result.meta["attribution"][0]["substituted"] == {"PReLU": 1}
    plain = method(Shallow(nn.ReLU()), substitute=True)(image, whole(6, 5))
    assert "substituted" not in plain.meta["attribution"][0]


def monai_unet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nets.UNet(3, 1, 2, (2, 4, 8, 16), (2, 2, 2), num_res_units=2, **options)


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
def test_monai_s_default_unet_is_refused(method: type[ClippedGradient]) -> None:
    network, image = monai_unet(), torch.randn(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"got PReLU x 13, the first at 'model\.0\.conv\.unit0\.adn\.A'"):
        method(network)(image, whole(16, 16, 16))
    result = method(network, substitute=True)(image, whole(16, 16, 16))
    assert result.meta["attribution"][0]["substituted"] == {"PReLU": 13}
    with_relu = method(monai_unet(act="RELU"))(image, whole(16, 16, 16))
    assert "substituted" not in with_relu.meta["attribution"][0]


def test_segresnet_calls_its_relus_again_and_is_explained() -> None:
    torch.manual_seed(0)
    network = nets.SegResNet(2, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,))
    image = torch.randn(1, 1, 16, 16)
    guided = GuidedBackprop(network)(image, whole(16, 16)).as_tensor()
    assert not torch.allclose(guided, Saliency(network)(image, whole(16, 16)).as_tensor())


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
@pytest.mark.parametrize("substitute", [False, True])
def test_functions_are_refused_in_any_case(method: type[ClippedGradient], substitute: bool) -> None:
    class Functional(Shallow):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.act(self.first(x))))

    with pytest.raises(ValueError, match=f"activations as modules for {method.name}, got functional relu x 1"):
        method(Functional(nn.ReLU()), substitute=substitute)(torch.randn(1, 2, 6, 5), whole(6, 5))


def test_guided_backprop_lets_only_positive_evidence_through() -> None:
    # One voxel, one weight: the logit falls with the hidden unit, so nothing comes through.
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[2].weight.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
    image = torch.ones(1, 1, 1, 1)
    maps = {label: GuidedBackprop(network)(image, Region(torch.ones(1, 1, 1, 1), label)) for label in (0, 1)}
    assert [float(maps[label]) for label in (0, 1)] == [2.0, 0.0]
