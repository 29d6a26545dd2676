"""Layers are found where a network goes down, turns and comes up, whoever wrote it, and it stays as it was."""

from __future__ import annotations

import re

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from unoise_monai.attribution.layers import Layer, find_layers, layer_named
from unoise_monai.networks import UNet, UNetMSS


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


class Failing(UNet):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("half way")


@pytest.mark.parametrize("dims", [2, 3])
def test_layers_of_the_u_net(dims: int) -> None:
    found = find_layers(UNet(dims, 1, 3, depth=3, channel_factor=2), image(*[8, 12, 4][:dims]))
    assert list(found) == ["encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1"]
    assert [layer.path for layer in found.values()] == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    assert [layer.factor for layer in found.values()] == [(factor,) * dims for factor in (1, 2, 4, 2, 1)]
    assert [layer.channels for layer in found.values()] == [4, 8, 16, 8, 4]


def test_layers_of_a_u_net_with_side_heads() -> None:
    found = find_layers(UNetMSS(2, 1, 1, (2, 4, 8)), image(8, 8))
    assert [layer.path for layer in found.values()] == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]


def test_a_single_level_is_the_bottleneck() -> None:
    assert find_layers(UNet(2, 1, 2, depth=1), image(5, 5)) == {"bottleneck": Layer("encoder.0", (1.0, 1.0), 16)}


def test_a_small_block_tells_of_a_volume_of_any_size() -> None:
    volume = torch.zeros(1).expand(2, 1, 5000, 5000, 5000)
    assert find_layers(UNet(3, 1, 2, depth=2, channel_factor=1), volume)["bottleneck"].factor == (2, 2, 2)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2), num_res_units=1),
            {
                "encoder.0": ("model.0", 2, 2),
                "bottleneck": ("model.1.submodule.1.submodule", 4, 8),
                "decoder.0": ("model.1.submodule.2", 2, 2),
                "decoder.1": ("model.2.0", 1, 2),
            },
        ),
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2)),
            {
                "encoder.0": ("model.0", 2, 2),
                "bottleneck": ("model.1.submodule.1.submodule", 4, 8),
                "decoder.0": ("model.1.submodule.2", 2, 2),
            },
        ),
        (
            nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 2), blocks_up=(1, 1)),
            {
                "encoder.0": ("down_layers.0", 1, 8),
                "encoder.1": ("down_layers.1", 2, 16),
                "bottleneck": ("down_layers.2", 4, 32),
                "decoder.0": ("up_layers.0", 2, 16),
                "decoder.1": ("up_layers.1", 1, 8),
            },
        ),
        (
            nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 8]),
            {
                "encoder.0": ("input_block", 1, 2),
                "encoder.1": ("downsamples.0", 2, 4),
                "bottleneck": ("bottleneck", 4, 8),
                "decoder.0": ("upsamples.0", 2, 4),
                "decoder.1": ("upsamples.1", 1, 2),
            },
        ),
        (
            nets.VNet(3, 1, 2),
            {
                "encoder.0": ("in_tr", 1, 16),
                "encoder.1": ("down_tr32", 2, 32),
                "encoder.2": ("down_tr64", 4, 64),
                "encoder.3": ("down_tr128", 8, 128),
                "bottleneck": ("down_tr256", 16, 256),
                "decoder.0": ("up_tr256", 8, 256),
                "decoder.1": ("up_tr128", 4, 128),
                "decoder.2": ("up_tr64", 2, 64),
                "decoder.3": ("up_tr32", 1, 32),
            },
        ),
    ],
    ids=["UNet with residual units", "UNet", "SegResNet", "DynUNet", "VNet"],
)
def test_layers_of_monai_s_networks(network: nn.Module, expected: dict[str, tuple[str, int, int]]) -> None:
    found = find_layers(network, image(32, 32, 32))
    assert {name: (path, factor[0], channels) for name, (path, factor, channels) in found.items()} == expected
    assert list(found) == list(expected)


def test_each_axis_has_its_factor() -> None:
    network = nets.DynUNet(3, 1, 2, [3, 3, 3], [1, (2, 2, 1), 2], [(2, 2, 1), 2], filters=[2, 4, 8])
    factors = {name: layer.factor for name, layer in find_layers(network, image(16, 8, 8)).items()}
    assert factors["encoder.1"] == (2, 2, 1)
    assert factors["bottleneck"] == (4, 4, 2)


def test_neither_a_shared_activation_nor_squeeze_and_excitation_is_a_layer() -> None:
    found = find_layers(SharedActivation(), image(8, 8))
    assert {name: layer.path for name, layer in found.items()} == {
        "encoder.0": "first",
        "bottleneck": "down",
        "decoder.0": "up",
    }


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


@pytest.mark.parametrize("kind", [UNet, Failing])
def test_the_network_stays_as_it_was(kind: type[UNet]) -> None:
    network = kind(2, 1, 2, depth=2, channel_factor=1).train()
    network.encoder[0].eval()
    before = [module.training for module in network.modules()]
    if kind is Failing:
        with pytest.raises(RuntimeError, match="half way"):
            find_layers(network, image(8, 8))
    else:
        find_layers(network, image(8, 8))
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert int(network.encoder[0][1].num_batches_tracked) == 0
