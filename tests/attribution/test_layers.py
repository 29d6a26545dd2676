"""Layers are found where a network goes down, turns and comes up; measured in windows they equal one pass."""

import re
from functools import partial

import pytest
import torch
from monai.networks import nets
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.layers import Layer, find_layers, layer_named, over_windows
from unoise_monai.attribution.targets import Difference, Foreground, Region, SoftDice, Target
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet, UNetMSS
from unoise_monai.networks.weights import attributing


def image(*size: int) -> Tensor:
    return torch.zeros(1, 1, *size)


def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1)


class SharedActivation(nn.Module):
    """Down and up again, one ReLU for all, squeeze and excitation at the full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up, self.head = conv(1, 2), conv(2, 4, 2), conv(4, 3), conv(3, 2)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.unused, self.relu = conv(1, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.down(x * self.squeeze(x)))
        x = self.relu(self.up(nn.functional.interpolate(x, scale_factor=2)))
        return self.head(x)


@pytest.mark.parametrize("dims", [2, 3])
def test_layers_of_the_u_net(dims: int) -> None:
    found = find_layers(UNet(dims, 1, 3, depth=3, channel_factor=2), image(*[8, 12, 4][:dims]))
    assert list(found) == ["encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1"]
    paths = ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    assert [layer.path for layer in found.values()] == paths
    with_side_heads = find_layers(UNetMSS(2, 1, 1, (2, 4, 8)), image(8, 8))
    assert [layer.path for layer in with_side_heads.values()] == paths
    assert [layer.factor for layer in found.values()] == [(factor,) * dims for factor in (1, 2, 4, 2, 1)]
    assert [layer.channels for layer in found.values()] == [4, 8, 16, 8, 4]


def test_a_single_level_is_the_bottleneck() -> None:
    assert find_layers(UNet(2, 1, 2, depth=1), image(5, 5)) == {"bottleneck": Layer("encoder.0", (1.0, 1.0), 16)}


def test_a_volume_of_any_size_needs_a_small_block_only() -> None:
    volume = torch.zeros(1).expand(2, 1, 5000, 5000, 5000)
    assert find_layers(UNet(3, 1, 2, depth=2, channel_factor=1), volume)["bottleneck"].factor == (2, 2, 2)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2), num_res_units=1),
            "encoder.0=model.0/2/2 bottleneck=model.1.submodule.1.submodule/4/8 decoder.0=model.1.submodule.2/2/2 "
            "decoder.1=model.2.0/1/2",
        ),
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2)),
            "encoder.0=model.0/2/2 bottleneck=model.1.submodule.1.submodule/4/8 decoder.0=model.1.submodule.2/2/2",
        ),
        (
            nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 2), blocks_up=(1, 1)),
            "encoder.0=down_layers.0/1/8 encoder.1=down_layers.1/2/16 bottleneck=down_layers.2/4/32 "
            "decoder.0=up_layers.0/2/16 decoder.1=up_layers.1/1/8",
        ),
        (
            nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 8]),
            "encoder.0=input_block/1/2 encoder.1=downsamples.0/2/4 bottleneck=bottleneck/4/8 "
            "decoder.0=upsamples.0/2/4 decoder.1=upsamples.1/1/2",
        ),
        (
            nets.VNet(3, 1, 2),
            "encoder.0=in_tr/1/16 encoder.1=down_tr32/2/32 encoder.2=down_tr64/4/64 encoder.3=down_tr128/8/128 "
            "bottleneck=down_tr256/16/256 decoder.0=up_tr256/8/256 decoder.1=up_tr128/4/128 decoder.2=up_tr64/2/64 "
            "decoder.3=up_tr32/1/32",
        ),
    ],
    ids=["UNet with residual units", "UNet", "SegResNet", "DynUNet", "VNet"],
)
def test_layers_of_monai_s_networks(network: nn.Module, expected: str) -> None:
    """Each as name=path/factor/channels, in order."""
    found = find_layers(network, image(32, 32, 32))
    described = (f"{name}={path}/{factor[0]:g}/{channels}" for name, (path, factor, channels) in found.items())
    assert " ".join(described) == expected


def test_each_axis_has_its_factor() -> None:
    network = nets.DynUNet(3, 1, 2, [3, 3, 3], [1, (2, 2, 1), 2], [(2, 2, 1), 2], filters=[2, 4, 8])
    factors = {name: layer.factor for name, layer in find_layers(network, image(16, 8, 8)).items()}
    assert factors["encoder.1"] == (2, 2, 1)
    assert factors["bottleneck"] == (4, 4, 2)


def test_neither_a_shared_activation_nor_squeeze_and_excitation_is_a_layer() -> None:
    found = find_layers(SharedActivation(), image(8, 8))
    assert list(found) == ["encoder.0", "bottleneck", "decoder.0"]
    assert [layer.path for layer in found.values()] == ["first", "down", "up"]


def test_a_layer_by_path_and_by_name() -> None:
    network = UNet(2, 1, 3, depth=3, channel_factor=2)
    assert layer_named(network, "bottleneck", image(8, 8)) == Layer("encoder.2", (4.0, 4.0), 16)
    assert layer_named(network, "encoder.1.0", image(8, 8)) == Layer("encoder.1.0", (2.0, 2.0), 8)
    assert layer_named(network, "head", image(8, 8)) == Layer("head", (1.0, 1.0), 3)


def test_a_path_goes_before_a_name() -> None:
    class Own(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.bottleneck = conv(1, 2)
            self.down, self.up, self.head = conv(2, 5, 2), nn.Upsample(scale_factor=2), conv(5, 1)

    assert find_layers(Own(), image(8, 8))["bottleneck"].path == "down"
    assert layer_named(Own(), "bottleneck", image(8, 8)).path == "bottleneck"


@pytest.mark.parametrize("name", ["encoder.7", "encoder", "side_heads.0", ""])
def test_no_such_layer(name: str) -> None:
    rule = (
        "layer must be one of encoder.0, encoder.1, bottleneck, decoder.0, decoder.1, or the path of a module that runs"
        f" once in a pass and gives a tensor (B, C, *spatial), got '{name}'"
    )
    with pytest.raises(ValueError, match=re.escape(rule)):
        layer_named(UNetMSS(2, 1, 1, (2, 4, 8)), name, image(8, 8))


@pytest.mark.parametrize("name", ["relu", "squeeze", "unused"])
def test_a_layer_runs_once_and_gives_a_map(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape("one of encoder.0, bottleneck, decoder.0, or")):
        layer_named(SharedActivation(), name, image(8, 8))


def test_a_scripted_network_shows_no_layers() -> None:
    with pytest.raises(ValueError, match="network must be a plain module for its layers to be found, got a scripted"):
        find_layers(torch.jit.script(UNet(2, 1, 2, depth=2, channel_factor=1)), image(8, 8))


def test_logits_are_no_layer() -> None:
    with pytest.raises(ValueError, match=r"network must consist of layers before its last, .* found no other"):
        find_layers(conv(1, 2), image(8, 8))


def test_the_network_stays_as_it_was() -> None:
    network = UNet(2, 1, 2, depth=2, channel_factor=1).train()
    network.encoder[0].eval()
    before = [module.training for module in network.modules()]
    find_layers(network, image(8, 8))
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert int(network.encoder[0][1].num_batches_tracked) == 0


SIZES = {2: (151, 11), 3: (93, 5, 7)}


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


def features_and_gradient(layer: nn.Module, score: Score, window: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
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

    def measure(score: Score, window: Tensor) -> tuple[Tensor, ...]:
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

    def measure(score: Score, window: Tensor, other: Tensor) -> tuple[Tensor, ...]:
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

    def measure(score: Score, window: Tensor) -> tuple[Tensor]:
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

    def measure(score: Score, window: Tensor) -> tuple[Tensor]:
        return (window[:, :, :side, :side],)

    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        with pytest.raises(ValueError, match=f"layer must lie on a grid that divides the network's stride, {message}"):
            over_windows(measure, score_of(network, Region(region(2), 1), budget), image)
