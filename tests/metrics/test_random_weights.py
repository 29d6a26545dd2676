"""Which modules make a layer, in which order, what they become, and that nothing of it stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.metrics.randomisation import Layer, kept_weights, order_of_calls, randomise, weighted_layers
from unoise_monai.networks import UNet


def names_of(layers: list[Layer]) -> list[list[str]]:
    return [[name for name, _ in layer] for layer in layers]


def layers_of(network: nn.Module, image: Tensor) -> list[Layer]:
    with order_of_calls(network) as called, torch.no_grad():
        network(image)
    return weighted_layers(network, called)


class Tangled(nn.Module):
    """Registered in another order than it runs; with a weight of its own, and one that is used without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 2, 1)
        self.silent = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.act = nn.PReLU()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.offset = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.register_buffer("grid", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = nn.functional.conv2d(x, self.silent.weight, self.silent.bias) + self.offset
        return self.head(x)


def test_layers_of_a_unet_go_from_the_head_to_the_first_convolution() -> None:
    network = UNet(3, 1, 3, depth=2, channel_factor=1)
    layers = layers_of(network, torch.zeros(1, 1, 4, 4, 4))
    assert names_of(layers) == [
        ["head"],
        ["decoder.0.conv.3", "decoder.0.conv.4"],
        ["decoder.0.conv.0", "decoder.0.conv.1"],
        ["decoder.0.up.1.0", "decoder.0.up.1.1"],
        ["encoder.1.3", "encoder.1.4"],
        ["encoder.1.0", "encoder.1.1"],
        ["encoder.0.3", "encoder.0.4"],
        ["encoder.0.0", "encoder.0.1"],
    ]
    assert names_of(weighted_layers(network, {})) == names_of(layers)


def test_the_order_is_that_of_the_pass() -> None:
    network = Tangled()
    layers = layers_of(network, torch.zeros(2, 1, 4, 4))
    assert names_of(layers) == [["head"], ["stem", "norm", "act"], [""], ["silent"]]
    assert all(not module._forward_pre_hooks for module in network.modules())


def test_a_norm_before_the_first_convolution_is_a_layer() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2))
    assert names_of(layers_of(network, torch.zeros(2, 1, 4, 4))) == [["1", "3"], ["0"]]


def test_hooks_go_when_the_block_fails() -> None:
    network = Tangled()
    with pytest.raises(RuntimeError, match="half way"), order_of_calls(network):
        raise RuntimeError("half way")
    assert all(not module._forward_pre_hooks for module in network.modules())


def test_weights_are_those_of_a_fresh_module_and_no_other_changes() -> None:
    network = UNet(2, 1, 2, depth=1, channel_factor=2)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.fill_(3)
    network.head.requires_grad_(False)
    layers, state = layers_of(network.eval(), torch.zeros(1, 1, 4, 4)), torch.get_rng_state()
    names = ["encoder.0.3", "encoder.0.4"]
    assert names_of(layers)[1] == names
    before = {name: value.clone() for name, value in network.state_dict().items()}
    randomise(layers[1], seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    fresh = {names[0]: nn.Conv2d(4, 4, 3, padding=1), names[1]: nn.BatchNorm2d(4)}
    for name, value in network.state_dict().items():
        module, _, key = name.rpartition(".")
        assert torch.equal(value, fresh[module].state_dict()[key] if module in fresh else before[name]), name
    assert [parameter.requires_grad for parameter in network.head.parameters()] == [False, False]
    once = copy.deepcopy(network.state_dict())
    randomise(layers[1], seed=6)
    assert not torch.equal(network.state_dict()["encoder.0.3.weight"], once["encoder.0.3.weight"])


def test_a_module_without_an_initialisation_keeps_its_scale() -> None:
    network = nn.ParameterList([torch.full((50, 60), -4.0), torch.zeros(3)])
    randomise([("", network)], seed=0)
    drawn, zeros = (parameter.detach() for parameter in network)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.3)
    assert float(drawn.std()) == pytest.approx(4, rel=0.05)
    assert zeros.tolist() == [0, 0, 0]


def test_running_statistics_without_weights_are_forgotten() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False))
    network(torch.randn(4, 1, 3, 3) + 7)
    assert int(network.state_dict()["1.num_batches_tracked"]) == 1
    layers = layers_of(network.eval(), torch.zeros(1, 1, 3, 3))
    randomise(layers[0], seed=0)
    state = network.state_dict()
    assert state["1.running_mean"].tolist() == [0, 0]
    assert state["1.running_var"].tolist() == [1, 1]
    assert int(state["1.num_batches_tracked"]) == 0


def test_kept_weights_come_back_exactly_and_in_place() -> None:
    network = Tangled()
    network(torch.randn(2, 1, 4, 4))
    before = {name: (value, value.clone()) for name, value in network.state_dict(keep_vars=True).items()}

    def spoil() -> None:
        with kept_weights(network):
            for layer in weighted_layers(network, {}):
                randomise(layer, seed=0)
            # All but a PReLU's slope, which starts at one value, and what is no weight.
            assert {name for name, pair in before.items() if torch.equal(*pair)} == {"act.weight", "grid"}
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        spoil()
    for name, value in network.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


def test_refuses_a_network_without_weights() -> None:
    with pytest.raises(ValueError, match="network must have weights to randomise, got none in Sequential"):
        weighted_layers(nn.Sequential(nn.ReLU()), {})
