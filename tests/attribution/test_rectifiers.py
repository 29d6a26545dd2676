"""Activations are found whether a module or a function makes them, and those that a rule misses are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from monai.networks import nets
from monai.networks.blocks import activation
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.guided import RECTIFIERS, Activations, activations
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet

IMAGE = torch.zeros(1, 1, 16, 16)


class Acting(nn.Module):
    """Two convolutions with a function or a module between."""

    def __init__(self, act: Callable[[Tensor], Tensor], calls: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.act, self.calls, self.unused = act, calls, nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.calls):
            x = F.interpolate(self.act(x), size=x.shape[2:])
        return self.last(x)


def found(network: nn.Module, image: Tensor = IMAGE) -> Activations:
    return activations(VolumeNetwork(network), image)


MODULES = [kind(0.0, 0.0) if kind is nn.Threshold else kind() for kind in RECTIFIERS]


@pytest.mark.parametrize("module", [*MODULES, nn.ReLU6(), nn.ReLU(inplace=True)], ids=lambda m: type(m).__name__)
def test_finds_a_module_and_no_function_behind_it(module: nn.Module) -> None:
    assert found(Acting(module)) == Activations({"act": module}, {}, {}, ())


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (lambda x: F.relu_(x * 1), "relu"),
        (F.relu6, "hardtanh"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x.clamp_min(0), "clamp"),
        (F.leaky_relu, "leaky_relu"),
        (lambda x: F.leaky_relu_(x * 1), "leaky_relu"),
        (lambda x: F.prelu(x, torch.tensor([0.2])), "prelu"),
        (F.rrelu, "rrelu"),
        (F.elu, "elu"),
        (lambda x: F.elu_(x * 1), "elu"),
        (F.celu, "celu"),
        (F.selu, "elu"),
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (F.mish, "mish"),
        (F.softplus, "softplus"),
        (F.hardswish, "hardswish"),
        (F.hardtanh, "hardtanh"),
        (lambda x: F.threshold(x, 0, 0), "threshold"),
        (lambda x: torch.maximum(x, torch.zeros(())), "maximum"),
        (lambda x: torch.maximum(x, 0.1 * x), "maximum"),
        (lambda x: torch.fmax(x, torch.zeros_like(x)), "maximum"),
        (lambda x: x.clamp(min=torch.zeros(2, 1, 1)), "clamp"),
        (lambda x: x.clamp_min(torch.tensor(0.0)), "clamp"),
        (lambda x: x.clamp(0, 6), "clamp"),
    ],
)
def test_finds_a_function(function: Callable[[Tensor], Tensor], name: str) -> None:
    assert found(Acting(function, calls=2)).functional == {name: 2}


@pytest.mark.parametrize(
    ("gate", "gates"),
    [
        (torch.sigmoid, {"sigmoid": 2}),
        (torch.tanh, {"tanh": 2}),
        (lambda x: x.softmax(1), {"softmax": 2}),
        (lambda x: x.clamp(-1, 1), {}),
        (lambda x: x.clamp(torch.full((), -1.0), torch.ones(())), {}),
        (abs, {}),
    ],
)
def test_gates_rectify_nothing(gate: Callable[[Tensor], Tensor], gates: dict[str, int]) -> None:
    assert found(Acting(gate, calls=2)) == Activations({}, {}, {}, (), gates)


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Tanh(), nn.Softmax(1)], ids=lambda m: type(m).__name__)
def test_gates_with_a_module(gate: nn.Module) -> None:
    assert found(Acting(gate)) == Activations({}, {}, {}, ())


def test_a_module_that_calls_a_function_does_not_hide_it() -> None:
    assert found(Acting(activation.GEGLU())).functional == {"gelu": 1}


def test_maximum_pooling_without_a_module() -> None:
    assert found(Acting(lambda x: F.max_pool2d(x, 2))).pooling == {"max_pool": 1}
    assert found(Acting(lambda x: F.adaptive_max_pool2d(x, 4))).pooling == {"adaptive_max_pool": 1}
    pool = nn.MaxPool2d(2)
    assert found(Acting(pool)) == Activations({}, {}, {}, (), pools={"act": pool})


@pytest.mark.parametrize("module", [nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid()], ids=lambda m: type(m).__name__)
def test_modules_that_are_called_again(module: nn.Module) -> None:
    assert found(Acting(module, calls=3)).reused == ("act",)


def test_the_networks_of_monai() -> None:
    volume = torch.zeros(1, 1, 16, 16, 16)
    plain = found(nets.UNet(3, 1, 2, (2, 4, 8, 16), (2, 2, 2), num_res_units=2), volume)
    assert {type(module) for module in plain.modules.values()} == {nn.PReLU}
    assert len(plain.modules) == 13
    residual = found(nets.SegResNet(3, init_filters=8, in_channels=1), volume)
    assert {type(module) for module in residual.modules.values()} == {nn.ReLU}
    assert residual.reused
    assert not residual.functional


def test_a_small_block_where_the_stride_is_told() -> None:
    seen: list[tuple[int, ...]] = []
    network = UNet(2, 1, 2, depth=3, channel_factor=2)
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    image = torch.rand(2, 1, 50, 9)
    found(network, image)
    network.stride = 16
    found(network, image)
    del network.stride
    network.pools = nn.ModuleList([nn.Identity()] * 3)
    network.decoder[0].up[0] = network.decoder[1].up[0] = nn.Identity()
    found(network, image)
    # A multiple of the stride, of two voxels at least at the coarsest level; else the image.
    assert seen == [(1, 1, 16, 12), (1, 1, 32, 16), (1, 1, 50, 9)]
    handle.remove()


def test_the_network_is_left_as_it_was() -> None:
    network = UNet(2, 1, 2, depth=2, channel_factor=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found(network, torch.rand(1, 1, 16, 16))
    assert network.training
    for module in network.modules():
        assert not module._forward_hooks
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def check(network: nn.Module, substitute: bool = False) -> dict[str, int]:
    return found(network).check("the_method", substitute)


def test_counts_what_is_substituted() -> None:
    network = Acting(nn.Sequential(nn.PReLU(), nn.ReLU(), nn.PReLU(), nn.ELU()))
    assert check(network, substitute=True) == {"PReLU": 2, "ELU": 1}
    assert check(Acting(nn.ReLU())) == check(Acting(nn.ReLU()), substitute=True) == {}


def test_refuses_other_modules_unless_substituted() -> None:
    with pytest.raises(ValueError, match=r"the_method has a rule for, got PReLU x 1, ELU x 1, the first at 'act\.0'"):
        check(Acting(nn.Sequential(nn.PReLU(), nn.ELU())))


@pytest.mark.parametrize("substitute", [False, True])
def test_refuses_functions_and_scripts_in_any_case(substitute: bool) -> None:
    network = Acting(lambda x: F.gelu(F.relu(F.relu(x))))
    with pytest.raises(ValueError, match=r"activations as modules for the_method, got functional gelu x 1, relu x 2"):
        check(network, substitute)
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()))
    for network in (scripted, nn.Sequential(scripted)):
        with pytest.raises(ValueError, match=r"network must be a plain module .* got a scripted one"):
            check(network, substitute)


def test_no_kind_is_another_one() -> None:
    # A subclass would be counted by its parent's rule.
    for kind, other in itertools.permutations(RECTIFIERS, 2):
        assert not issubclass(kind, other) or (kind, other) == (activation.Mish, nn.Mish), (kind, other)
