"""A rule acts on the gradient of each call of a module alone, and leaves the forward pass and the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.attribution.guided import backward_rule, own_inputs, own_output


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

    with backward_rule([network.act], rule):
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
    with backward_rule([network.act], lambda inputs, output: lambda gradient, upstream: gradient):
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        with torch.no_grad():
            torch.testing.assert_close(network(x), network(x.detach()))
    torch.testing.assert_close(gradient, expected)


def test_number_formats_may_change_within_the_module() -> None:
    class Widening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    module, x = Widening(), torch.ones(2, requires_grad=True)
    with backward_rule([module], lambda inputs, output: lambda gradient, upstream: 3 * upstream):
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
    assert gradient.tolist() == [3, 3]
    assert gradient.dtype == torch.float32


def test_own_inputs_are_copies() -> None:
    module, x = nn.ReLU(inplace=True), torch.tensor([-1.0, 1.0])
    with own_inputs([module]):
        module(x)
        assert x.tolist() == [-1, 1]
    with own_inputs([module], torch.float64):
        assert module(x).dtype == torch.float64
    module(x)
    assert x.tolist() == [0, 1]


def test_no_hook_is_left_after_a_failure() -> None:
    module = nn.ReLU()

    def fail() -> None:
        with backward_rule([module], lambda inputs, output: lambda gradient, upstream: gradient):
            assert module._forward_hooks
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_what_follows_a_layer_writes_into_a_copy_whatever_hooks_come_later() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    own, leaf = torch.full((1, 2), 5.0, requires_grad=True), torch.full((1, 2), 3.0, requires_grad=True)
    layer.register_forward_hook(lambda *_: own)
    with own_output(layer):
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
    with pytest.raises(RuntimeError, match="half way"), own_output(layer):
        raise RuntimeError("half way")
    assert (len(layer._forward_hooks), len(layer._forward_pre_hooks)) == (1, 0)
