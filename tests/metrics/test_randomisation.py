"""Which layers become random, in which order, and what it does to a map; nothing of it stays."""

import copy
import math
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.targets import Target, foreground_sum
from unoise_monai.metrics.faithfulness import (
    Layer,
    kept_weights,
    order_of_calls,
    randomisation,
    randomise,
    weighted_layers,
)
from unoise_monai.metrics.overlap import rank_correlation, structural_similarity
from unoise_monai.networks import UNet


def unet(spatial_dims: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(spatial_dims, 1, 3, depth=2, channel_factor=2).eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def total(logits: Tensor) -> Tensor:
    return logits.flatten(1).sum(dim=1)


class Edges:
    """Shows the image, whatever the network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, image: Tensor, target: Target) -> Tensor:
        return image.diff(dim=-1, append=image[..., -1:])


class Output(Edges):
    """The network's output; notes the weights of every call, and fails at one if asked to."""

    def __init__(self, network: nn.Module, fails_at: int = 99) -> None:
        super().__init__(network)
        self.weights: list[dict[str, Tensor]] = []
        self.fails_at = fails_at

    def __call__(self, image: Tensor, target: Target) -> Tensor:
        self.weights.append({name: value.clone() for name, value in self.network.state_dict().items()})
        if len(self.weights) > self.fails_at:
            raise RuntimeError("half way")
        with torch.no_grad():
            return self.network(image)[:, :1]


def same(before: dict[str, Tensor], after: dict[str, Tensor], module: str) -> bool:
    """Whether all that a module holds is the same."""
    return all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith(f"{module}."))


LAYERS = (
    "head",
    "decoder.0.conv.3",
    "decoder.0.conv.0",
    "decoder.0.up.1.0",
    "encoder.1.3",
    "encoder.1.0",
    "encoder.0.3",
    "encoder.0.0",
)


def test_layers_become_random_one_after_the_other_and_come_back() -> None:
    network, image = unet(), randn(2, 1, 12, 12)
    attributor, state = Output(network), torch.get_rng_state()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = randomisation(attributor, image, total, None, seed=3)
    assert result.layers == LAYERS
    trained, *random = attributor.weights
    for step, weights in enumerate(random):
        assert [same(trained, weights, layer) for layer in LAYERS] == [index > step for index in range(8)]
        # What is random already stays as it is.
        assert all(same(weights, random[-1], layer) for layer in LAYERS[: step + 1])
    # Layers of the same shape are not made the same.
    assert not torch.equal(random[-1]["encoder.0.3.weight"], random[-1]["decoder.0.conv.3.weight"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(("steps", "at"), [(1, [7]), (3, [2, 5, 7]), (50, range(8))])
def test_fewer_steps_are_some_of_all(steps: int, at: list[int]) -> None:
    image, where = randn(2, 1, 12, 12), randn(2, 1, 12, 12) > 0
    whole = randomisation(Output(unet()), image, total, where, seed=3)
    some = randomisation(Output(unet()), image, total, where, seed=3, steps=steps)
    assert some.layers == tuple(LAYERS[index] for index in at)
    assert torch.equal(some.correlation, whole.correlation[list(at)])
    assert torch.equal(some.ssim, whole.ssim[list(at)])
    assert torch.equal(some.unchanged, whole.unchanged)
    other = randomisation(Output(unet()), image, total, where, seed=4, steps=1)
    assert not torch.equal(other.correlation, whole.correlation[-1:])


def test_scores_compare_magnitudes_with_the_trained_network_s_map() -> None:
    network, image, where = unet(), randn(2, 1, 12, 12), randn(2, 1, 12, 12) > 0
    attributor = Output(network)
    result = randomisation(attributor, image, total, where, seed=3, steps=2)
    assert result.correlation.shape == result.ssim.shape == (2, 2)
    with torch.no_grad():
        original = network(image)[:, :1].abs().double()
        for step, weights in enumerate(attributor.weights[1:]):
            network.load_state_dict(weights)
            changed = network(image)[:, :1].abs().double()
            torch.testing.assert_close(result.correlation[step], rank_correlation(original, changed, where))
            torch.testing.assert_close(result.ssim[step], structural_similarity(original, changed))
    for limit in result.correlation.flatten().tolist():
        flags = randomisation(Output(unet()), image, total, where, seed=3, steps=2, limit=limit).unchanged
        assert flags.tolist() == [value > limit for value in result.correlation[-1].tolist()]


@pytest.mark.parametrize("spatial", [(12, 12), (8, 6, 4)])
def test_the_gradient_changes_and_edges_don_t(spatial: tuple[int, ...]) -> None:
    network, image = unet(len(spatial)), MetaTensor(randn(2, 1, *spatial))
    with torch.no_grad():
        logits = network(image)
    target, where = foreground_sum(logits), logits.argmax(dim=1, keepdim=True) > 0
    gradient = randomisation(Saliency(network), image, target, where, seed=0, steps=2)
    edges = randomisation(Edges(network), image, target, where, seed=0, steps=2)
    assert gradient.unchanged.tolist() == [False, False]
    assert edges.unchanged.tolist() == [True, True]
    torch.testing.assert_close(edges.correlation, torch.ones(2, 2, dtype=torch.float64))
    assert edges.ssim.flatten().tolist() == pytest.approx([1] * 4)
    assert float(gradient.ssim.max()) < 0.9
    assert all(type(part) is Tensor for part in edges[1:])


def test_of_a_learned_attribution_the_noise_model_is_made_random() -> None:
    network, noise_model, image = unet(), unet(), randn(1, 1, 12, 12)
    # Its map comes from the noise model alone: no weight of the utility matters.
    learned = Learned(network, noise_model)
    assert randomisation(learned, image, total, None, seed=0, steps=1).unchanged.tolist() == [True]
    result = randomisation(learned, image, total, None, seed=0, steps=1, network=noise_model)
    assert result.unchanged.tolist() == [False]


class Learned(Edges):
    def __init__(self, network: nn.Module, noise_model: nn.Module) -> None:
        super().__init__(network)
        self.noise_model = noise_model

    def __call__(self, image: Tensor, target: Target) -> Tensor:
        with torch.no_grad():
            return self.noise_model(image)[:, :1].sigmoid()


def test_a_network_that_is_one_module_goes_by_its_class() -> None:
    assert randomisation(Output(nn.Conv2d(1, 1, 3, padding=1)), randn(1, 1, 8, 8), total, None, seed=0).layers == (
        "Conv2d",
    )


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_the_network_comes_back_when_the_attributor_fails(fails_at: int) -> None:
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="half way"):
        randomisation(Output(network, fails_at), randn(1, 1, 12, 12), total, None, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"where": torch.zeros(1, 1, 8, 8) > 0}, "where must hold at least one voxel of every item, got an item"),
        ({"where": torch.ones(1, 1, 8, 7) > 0}, "where must be one channel on the image's grid, (1, 1, 8, 8)"),
        ({"network": nn.ReLU()}, "network must have weights to randomise, got none in ReLU"),
        ({"image": torch.full((1, 1, 8, 8), math.inf)}, "the attributor's map must hold finite values only"),
    ],
)
def test_refuses(changed: dict, says: str) -> None:
    given = {"image": randn(1, 1, 8, 8), "where": None, "steps": None, "network": None, **changed}
    with pytest.raises(ValueError, match=re.escape(says)):
        randomisation(Edges(unet()), target=total, seed=0, **given)


def test_refuses_an_attributor_without_a_network() -> None:
    with pytest.raises(TypeError, match="network must be given where the attributor has none, got NoneType"):
        randomisation(lambda image, _: image, randn(1, 1, 8, 8), total, None, seed=0)


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
