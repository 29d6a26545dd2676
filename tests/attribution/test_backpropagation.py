"""Other rules for the way back: which activations there are, which are refused, and maps against passes by hand."""

import itertools
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from monai.networks import nets
from monai.networks.blocks import activation
from small import Shallow, Summing, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution import Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop, Region, backpropagation
from unoise_monai.attribution.backpropagation import RECTIFIERS, RESCALED, Activations, ClippedGradient, activations
from unoise_monai.attribution.base import baselines
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet


def whole(*size: int) -> Region:
    return Region(torch.ones(1, 1, *size), 1, mean=False)


def clipped_by_hand(network: Shallow, image: Tensor, deconvolution: bool, slope: float = 0.0) -> Tensor:
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


CLIPPED = [(GuidedBackprop, False), (Deconvolution, True)]


@pytest.mark.parametrize(("method", "deconvolution"), CLIPPED)
@pytest.mark.parametrize("size", [(6, 5), (4, 5, 6)])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_equals_the_pass_by_hand(
    method: type[ClippedGradient], deconvolution: bool, size: tuple[int, ...], skip: bool, inplace: bool
) -> None:
    network, image = Shallow(nn.ReLU(inplace), len(size), skip, channels=2), torch.randn(1, 2, *size)
    result = method(network, sign="signed")(image, whole(*size)).as_tensor()
    torch.testing.assert_close(result, clipped_by_hand(network, image, deconvolution))
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


@pytest.mark.parametrize(("method", "deconvolution"), CLIPPED)
def test_a_clipping_substitute_says_so(method: type[ClippedGradient], deconvolution: bool) -> None:
    network, image = Shallow(nn.PReLU(init=0.3), channels=2), torch.randn(1, 2, 6, 5)
    with pytest.raises(ValueError, match=rf"{method.name} has a rule for, got PReLU x 1, the first at 'act'"):
        method(network)(image, whole(6, 5))
    result = method(network, substitute=True, sign="signed")(image, whole(6, 5))
    torch.testing.assert_close(result.as_tensor(), clipped_by_hand(network, image, deconvolution, slope=0.3))
    assert result.meta["attribution"][0]["substituted"] == {"PReLU": 1}
    plain = method(Shallow(nn.ReLU(), channels=2), substitute=True)(image, whole(6, 5))
    assert "substituted" not in plain.meta["attribution"][0]


def monai_unet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nets.UNet(3, 1, 2, (2, 4, 8, 16), (2, 2, 2), num_res_units=2, **options)


def test_monai_s_default_unet_is_refused() -> None:
    network, image = monai_unet(), torch.randn(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"got PReLU x 13, the first at 'model\.0\.conv\.unit0\.adn\.A'"):
        GuidedBackprop(network)(image, whole(16, 16, 16))
    for each, note in ((network, {"PReLU": 13}), (monai_unet(act="RELU"), None)):
        result = GuidedBackprop(each, substitute=True)(image, whole(16, 16, 16))
        assert result.meta["attribution"][0].get("substituted") == note


def test_segresnet_calls_its_relus_again_and_is_explained() -> None:
    torch.manual_seed(0)
    network = nets.SegResNet(2, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,))
    image = torch.randn(1, 1, 16, 16)
    assert found(network, image).reused
    guided = GuidedBackprop(network)(image, whole(16, 16)).as_tensor()
    assert not torch.allclose(guided, Saliency(network)(image, whole(16, 16)).as_tensor())


ZEROS = torch.zeros(1, 1, 16, 16)


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


def found(network: nn.Module, image: Tensor = ZEROS) -> Activations:
    return activations(VolumeNetwork(network), image)


MODULES = [kind(0.0, 0.0) if kind is nn.Threshold else kind() for kind in RECTIFIERS]


GATES = [nn.Sigmoid(), nn.Tanh(), nn.Softmax(1)]


@pytest.mark.parametrize("module", [*MODULES, nn.ReLU6(), nn.ReLU(inplace=True), *GATES], ids=str)
def test_finds_a_module_but_for_gates_and_no_function_behind_it(module: nn.Module) -> None:
    assert found(Acting(module)) == Activations({} if module in GATES else {"act": module}, {}, {}, ())


FUNCTIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [F.relu, lambda x: F.relu_(x * 1)],
    "hardtanh": [F.hardtanh, F.relu6],
    "clamp": [
        *(lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: x.clamp(0, 6)),
        *(lambda x: x.clamp(min=torch.zeros(2, 1, 1)), lambda x: x.clamp_min(torch.tensor(0.0))),
    ],
    "leaky_relu": [F.leaky_relu, lambda x: F.leaky_relu_(x * 1)],
    "prelu": [lambda x: F.prelu(x, torch.tensor([0.2]))],
    "elu": [F.elu, F.selu, lambda x: F.elu_(x * 1)],
    "threshold": [lambda x: F.threshold(x, 0, 0)],
    "maximum": [lambda x: torch.maximum(x, torch.zeros(())), lambda x: torch.maximum(x, 0.1 * x)],
    "fmax": [lambda x: torch.fmax(x, torch.zeros_like(x))],
    **{name: [getattr(F, name)] for name in ("rrelu", "celu", "gelu", "silu", "mish", "softplus", "hardswish")},
}


@pytest.mark.parametrize(("function", "name"), [(each, name) for name in FUNCTIONS for each in FUNCTIONS[name]])
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


def test_a_small_block_where_the_stride_is_known() -> None:
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


def check(network: nn.Module, substitute: bool = False) -> dict[str, dict[str, int]]:
    return found(network).check("the_method", substitute)


def test_refuses_other_modules_or_counts_what_is_substituted() -> None:
    network = Acting(nn.Sequential(nn.PReLU(), nn.ReLU(), nn.PReLU(), nn.ELU()))
    assert check(network, substitute=True) == {"substituted": {"PReLU": 2, "ELU": 1}}
    with pytest.raises(ValueError, match=r"the_method has a rule for, got PReLU x 2, ELU x 1, the first at 'act\.0'"):
        check(network)
    assert check(Acting(nn.ReLU())) == check(Acting(nn.ReLU()), substitute=True) == {}


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


class Skipping(nn.Module):
    """An activation that is called twice, interleaved, on inputs that go round it too."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        first, second = 2 * x, 3 * x
        # Branches on purpose in an order in which both inputs exist before either call.
        one, two = self.act(first), self.act(second)
        return 5 * one + 7 * two + 11 * first + 13 * second


def gradient_by_hand(x: Tensor, back: tuple[Tensor, Tensor]) -> Tensor:
    return 2 * (back[0] + 11) + 3 * (back[1] + 13)


def test_each_call_has_its_own_gradients_and_skip_connections_theirs() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    network = Skipping(nn.ReLU())
    seen = []

    def rule(inputs: Tensor, output: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def backward(gradient: Tensor, upstream: Tensor) -> Tensor:
            seen.append((inputs.clone(), output.clone(), gradient.clone(), upstream.clone()))
            return 100 * upstream

        return backward

    with backpropagation.backward_rule([network.act], rule):
        y = network(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, network(x))
    torch.testing.assert_close(gradient, gradient_by_hand(x, (torch.full((3,), 500.0), torch.full((3,), 700.0))))
    assert len(seen) == 2
    for (inputs, output, plain, upstream), factor, weight in zip(reversed(seen), (2, 3), (5.0, 7.0), strict=True):
        torch.testing.assert_close(inputs, factor * x.detach())
        torch.testing.assert_close(output, (factor * x.detach()).relu())
        torch.testing.assert_close(upstream, torch.full((3,), weight))
        torch.testing.assert_close(plain, weight * (x.detach() > 0))


def test_the_identity_rule_is_the_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    network = Skipping(nn.PReLU())
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    with backpropagation.backward_rule([network.act], lambda inputs, output: lambda gradient, upstream: gradient):
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        with torch.no_grad():
            torch.testing.assert_close(network(x), network(x.detach()))
    torch.testing.assert_close(gradient, expected)


def test_number_formats_may_change_within_the_module() -> None:
    class Widening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    module, x = Widening(), torch.ones(2, requires_grad=True)
    with backpropagation.backward_rule([module], lambda inputs, output: lambda gradient, upstream: 3 * upstream):
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
    assert gradient.tolist() == [3, 3]
    assert gradient.dtype == torch.float32


def test_own_inputs_are_copies() -> None:
    module, x = nn.ReLU(inplace=True), torch.tensor([-1.0, 1.0])
    with backpropagation.own_inputs([module]):
        module(x)
        assert x.tolist() == [-1, 1]
    with backpropagation.own_inputs([module], torch.float64):
        assert module(x).dtype == torch.float64
    module(x)
    assert x.tolist() == [0, 1]


def test_what_follows_a_layer_writes_into_a_copy_whatever_hooks_come_later() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    own, leaf = torch.full((1, 2), 5.0, requires_grad=True), torch.full((1, 2), 3.0, requires_grad=True)
    layer.register_forward_hook(lambda *_: own)
    with backpropagation.own_output(layer):
        first = layer(x)
        assert torch.equal(first, own)
        handle = layer.register_forward_hook(lambda *_: leaf)
        for _ in range(2):
            output = layer(x)
            output += 1
            assert torch.equal(leaf, torch.full((1, 2), 3.0))
            assert torch.equal(torch.autograd.grad(output.sum(), leaf)[0], torch.ones(1, 2))
        handle.remove()
    assert layer(x) is own
    assert not layer._forward_pre_hooks
    with pytest.raises(RuntimeError, match="half way"), backpropagation.own_output(layer):
        raise RuntimeError("half way")
    assert (len(layer._forward_hooks), len(layer._forward_pre_hooks)) == (1, 0)


SIZE = (12, 8)
IMAGE = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1, mean=False)


def rescaled_by_hand(network: Shallow, start: Tensor) -> Tensor:
    """The slope of the activation between the image and the baseline, in place of its gradient."""
    with torch.no_grad():
        after, before = network.first(IMAGE), network.first(start)
        slope = (network.act(after.clone()) - network.act(before.clone())) / (after - before)
        top = torch.zeros(1, 2, *SIZE)
        top[:, 1] = 1
        upstream = F.conv_transpose2d(top, network.last.weight, padding=1)
        upstream = upstream * (slope + 1 if network.skip else slope)
        return (IMAGE - start) * F.conv_transpose2d(upstream, network.first.weight, padding=1)


def notes_of(maps: Any) -> dict[str, Any]:
    return maps.meta["attribution"][0]


ACTS = [nn.ReLU(), nn.ReLU(inplace=True), nn.ELU(), nn.Sigmoid(), nn.PReLU(), nn.GELU(), activation.Swish()]


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("skip", [False, True])
def test_equals_the_rescale_rule_by_hand(act: nn.Module, skip: bool) -> None:
    network = Shallow(act, skip=skip)
    maps = DeepLift(network, baseline=0.5, substitute=True, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(
        maps.as_tensor(), rescaled_by_hand(network, torch.full_like(IMAGE, 0.5)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kind", ["zero", "noise"])
def test_the_sum_is_the_difference_of_scores(depth: int, kind: str) -> None:
    network = unet(2, depth=depth)
    (start,) = baselines(IMAGE, (kind,))
    with torch.no_grad():
        difference = float(TARGET(network(IMAGE)) - TARGET(network(start)))
    maps = DeepLift(network, kind, sign="signed")(IMAGE, TARGET)
    assert float(maps.sum()) == pytest.approx(difference, abs=1e-4 * float(maps.as_tensor().abs().sum()))
    assert notes_of(maps)["score_difference"] == pytest.approx(difference, abs=1e-4)
    expected = float(maps.sum()) - difference
    assert notes_of(maps)["convergence_delta"] == pytest.approx(expected, abs=1e-4)


def test_several_baselines_are_the_mean_of_each_s_map() -> None:
    network, kinds = unet(2), ("zero", "blur", -1.0)
    singles = [DeepLift(network, kind, sign="signed")(IMAGE, TARGET) for kind in kinds]
    maps = DeepLiftShap(network, kinds, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), torch.stack([each.as_tensor() for each in singles]).mean(dim=0))
    for key in ("convergence_delta", "score_difference"):
        mean = sum(notes_of(each)[key] for each in singles) / 3
        assert notes_of(maps)[key] == pytest.approx(mean, abs=1e-6 * abs(notes_of(maps)["score_difference"]))


def test_equals_captum_s_where_that_is_right() -> None:
    network, stack = Shallow(nn.ReLU()), torch.randn(3, 1, *SIZE)
    method = captum.attr.DeepLiftShap(nn.Sequential(network, Summing()))
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        expected = method.attribute(IMAGE.clone().requires_grad_(), stack)
    maps = DeepLiftShap(network, stack, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected.detach())


@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_a_rescaling_substitute_says_so(method: type[DeepLift]) -> None:
    torch.manual_seed(0)
    network = nets.UNet(2, 1, 2, (2, 4, 8), (2, 2), norm="BATCH")
    with pytest.raises(ValueError, match=rf"{method.name} has a rule for, got PReLU x 4, the first at"):
        method(network)(IMAGE, TARGET)
    maps = method(network, substitute=True, sign="signed")(IMAGE, TARGET)
    assert notes_of(maps)["substituted"] == {"PReLU": 4}
    assert abs(notes_of(maps)["convergence_delta"]) < 1e-4 * float(maps.as_tensor().abs().sum())


@pytest.mark.parametrize("substitute", [False, True])
def test_refuses_what_captum_would_get_wrong(substitute: bool) -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(F.max_pool2d(x, 2), scale_factor=2)

    relu = nn.ReLU()
    refused = {
        "activations as modules for deep_lift, got functional relu x 1": [Shallow(F.relu)],
        "its pooling and gates as modules for deep_lift, got max_pool x 1": [Shallow(Pooled())],
        r"gates as modules for deep_lift, got (sigmoid|tanh|softmax) x 1": [
            Shallow(gate) for gate in (torch.sigmoid, torch.tanh, lambda x: x.softmax(dim=1))
        ],
        r"module once for deep_lift, got 1 .* the first at 'act\.0'": [
            Shallow(nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu))
        ],
        "must call each activation and pooling module once for deep_lift, got 3": [
            nets.SegResNet(2, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,))
        ],
    }
    for says, networks in refused.items():
        for network in networks:
            with pytest.raises(ValueError, match=says):
                DeepLift(network, substitute=substitute)(IMAGE, TARGET)


@pytest.mark.parametrize(
    ("pool", "overlaps"),
    [
        (nn.MaxPool2d(2), False),
        (nn.MaxPool2d((1, 2), (2, 2)), False),
        (nn.MaxPool2d(3, 2, padding=1), True),
        (nn.MaxPool2d((2, 3), 2, padding=(0, 1)), True),
        (nn.MaxPool2d(2, (2, 1)), True),
        (nn.MaxPool2d(2, 2, dilation=2, padding=1), True),
        (nn.MaxPool2d(1), False),
    ],
    ids=str,
)
def test_pooling_adds_up_or_is_refused(pool: nn.MaxPool2d, overlaps: bool) -> None:
    # Of windows that share a voxel, Captum keeps the share of one.
    network = Shallow(nn.Sequential(pool, nn.Upsample(SIZE)))
    if overlaps:
        with pytest.raises(ValueError, match=r"no larger than their stride for deep_lift, got MaxPool2d.* at 'act\.0'"):
            DeepLift(network)(IMAGE, TARGET)
    else:
        maps = DeepLift(network, sign="signed")(IMAGE, TARGET)
        assert abs(notes_of(maps)["convergence_delta"]) < 1e-4 * float(maps.as_tensor().abs().sum())


def test_a_subclass_of_relu_is_none_to_captum() -> None:
    class MyReLU(nn.ReLU):
        pass

    with pytest.raises(ValueError, match="got MyReLU x 1"):
        DeepLift(Shallow(MyReLU()))(IMAGE, TARGET)
    maps = DeepLift(Shallow(MyReLU()), substitute=True)(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), DeepLift(Shallow(nn.ReLU()))(IMAGE, TARGET).as_tensor())


def test_nothing_is_kept_on_modules_that_the_target_does_not_reach() -> None:
    class Branching(Shallow):
        def forward(self, x: Tensor) -> Tensor:
            self.dead(x)
            return super().forward(x)

    network = Branching(nn.ReLU())
    network.dead = nn.ReLU()
    before = [sorted(vars(module)) for module in network.modules()]
    DeepLift(network)(IMAGE, TARGET)
    assert [sorted(vars(module)) for module in network.modules()] == before


def test_the_rules_are_captum_s() -> None:
    assert set(RESCALED) == set(SUPPORTED_NON_LINEAR)


def test_where_nothing_differs_the_gradient_stays() -> None:
    inputs, output = torch.tensor([1.0, 2.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    result = backpropagation.rescale(inputs, output)(torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.full((4,), 10.0))
    assert result.tolist() == [5.0, 20.0, 7.0, 20.0]
