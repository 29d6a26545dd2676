"""Guided backpropagation at a layer and DeepLIFT of a layer equal passes back by hand."""

import pytest
import torch
from small import picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.layer_methods import LayerDeepLift, LayerGuidedActivation, LayerGuidedBackprop
from unoise_monai.attribution.targets import SoftDice

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
