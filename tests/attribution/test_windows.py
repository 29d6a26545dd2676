"""A layer measured window by window equals the layer measured at once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.layers import WindowScore, over_windows
from unoise_monai.attribution.targets import Difference, Foreground, Region, SoftDice, Target
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet
from unoise_monai.networks.modes import attributing

SIZES = {2: (151, 11), 3: (93, 5, 7)}


def unet(dims: int, depth: int = 2) -> UNet:
    """With a batch norm that does something."""
    torch.manual_seed(dims)
    network = UNet(dims, 1, 3, depth, channel_factor=1).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 1)
    return network


def picture(dims: int) -> Tensor:
    return torch.randn(1, 1, *SIZES[dims], generator=torch.Generator().manual_seed(dims))


def region(dims: int, label: int = 1) -> Tensor:
    return torch.rand(1, 1, *SIZES[dims], generator=torch.Generator().manual_seed(label)) < 0.3


def half_of_what_it_takes(network: nn.Module, image: Tensor, copies: int = 1) -> float:
    """A budget, in 1e9 bytes, that needs windows."""
    volume = VolumeNetwork(network)
    with torch.enable_grad():
        return 0.65e-9 * volume._cost(image).bytes_per_voxel * volume.pad(image).numel() * copies


def score_of(network: nn.Module, target: Target, memory_gb: float | None = None) -> Score:
    return Score(VolumeNetwork(network, memory_gb, clips=True), target)


def features_and_gradient(layer: nn.Module, score: WindowScore, window: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    value = score(window)
    handle.remove()
    return kept[0].detach(), *torch.autograd.grad(value.sum(), [kept[0], window])


TARGETS = {
    "region": lambda dims: Region(region(dims), 1),
    "foreground": lambda dims: Foreground(region(dims).long() + region(dims, 2)),
    "difference": lambda dims: Difference(Region(region(dims), 1), Region(region(dims), 2)),
    "dice": lambda dims: SoftDice(region(dims).long(), 1),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("path", ["encoder.0", "encoder.1", "decoder.0.up", "head"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_windows_equal_the_whole(dims: int, path: str, target: str) -> None:
    network, image, windows = unet(dims), picture(dims), []

    def measure(score: WindowScore, window: Tensor) -> tuple[Tensor, ...]:
        windows.append(window.shape[2])
        return features_and_gradient(network.get_submodule(path), score, window)

    with attributing(network):
        whole = over_windows(measure, score_of(network, TARGETS[target](dims)), image)
        assert windows == [image.shape[2] + 1]
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, TARGETS[target](dims), budget), image)
    assert len(windows) > 2
    assert max(windows[1:]) < image.shape[2]
    side = image.shape[2] + 1
    layer_side = side // 2 if path == "encoder.1" else side
    assert [part.shape[2] for part in parts] == [layer_side, layer_side, side]
    for one, other in zip(whole, parts, strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_windows_of_a_deeper_network_reach_further() -> None:
    torch.manual_seed(0)
    network, image = UNet(2, 1, 2, 3, channel_factor=1).eval(), torch.randn(1, 1, 297, 4)
    mask = torch.rand(1, 1, 297, 4) < 0.3
    measure = partial(features_and_gradient, network.encoder[2])
    with attributing(network):
        whole = over_windows(measure, score_of(network, Region(mask, 1)), image)
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, Region(mask, 1), budget), image)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_other_volumes_go_along() -> None:
    network, image = unet(2), picture(2)
    start = torch.arange(151.0).reshape(1, 1, 151, 1).expand_as(image)

    def measure(score: WindowScore, window: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        assert score.copies == 1
        assert window.is_leaf
        assert window.requires_grad
        return window, other

    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, Region(region(2), 1), budget), image, (start,))
    assert torch.equal(parts[0][..., :151, :11], image)
    assert torch.equal(parts[1][..., :151, :11], start)
    assert not parts[0].requires_grad


def test_more_copies_take_smaller_windows() -> None:
    network, image = unet(2), picture(2)
    seen: list[tuple[int, int]] = []

    def measure(score: WindowScore, window: Tensor) -> tuple[Tensor]:
        seen.append((score.copies, window.shape[2]))
        return (window,)

    budget = half_of_what_it_takes(network, image, 2)
    with attributing(network):
        for copies in (1, 2):
            over_windows(measure, score_of(network, Region(region(2), 1), budget), image, copies=copies)
        assert seen[0] == (1, 152)
        assert {copies for copies, _ in seen[1:]} == {2}
        assert len(seen) > 2
        # At once, as many go through as there is memory for.
        for copies in (2, 5):
            score = Score(VolumeNetwork(network, clips=True), Region(region(2), 1), copies=3)
            over_windows(measure, score, image, copies=copies)
        assert seen[-2:] == [(3, 152), (5, 152)]


@pytest.mark.parametrize(
    "target",
    [
        SoftDice(region(2).long(), 1),
        lambda logits: logits.clamp_min(0).flatten(1).sum(dim=1),
        lambda logits: (logits**2).flatten(1).sum(dim=1),
        lambda logits: (logits**3).flatten(1).sum(dim=1),
    ],
    ids=["dice", "rectified", "squared", "cubed"],
)
def test_what_needs_a_linear_target_over_windows(target: Target) -> None:
    network, image = unet(2), picture(2)
    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        measure = partial(features_and_gradient, network.encoder[1])
        over_windows(measure, score_of(network, target), image, linear=True)
        with pytest.raises(ValueError, match=r"target must be linear in the logits, .* got "):
            over_windows(measure, score_of(network, target, budget), image, linear=True)
        for linear in (Region(region(2), 1), Difference(Region(region(2), 1), Foreground(region(2).long()))):
            over_windows(measure, score_of(network, linear, budget), image, linear=True)


def test_a_target_gives_one_scalar_an_item() -> None:
    network, image = unet(2), picture(2)
    with attributing(network), pytest.raises(ValueError, match=r"one scalar an item, \(1,\), got \(1, 3, 151, 11\)"):
        over_windows(partial(features_and_gradient, network.head), score_of(network, lambda logits: logits), image)


@pytest.mark.parametrize(("side", "message"), [(5, "got 5 for"), (2, r"got factors \(\d+, 6\)")])
def test_a_grid_that_does_not_fit_the_windows(side: int, message: str) -> None:
    network, image = unet(2), picture(2)

    def measure(score: WindowScore, window: Tensor) -> tuple[Tensor]:
        return (window[:, :, :side, :side],)

    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        with pytest.raises(ValueError, match=f"layer must lie on a grid that divides the network's stride, {message}"):
            over_windows(measure, score_of(network, Region(region(2), 1), budget), image)
