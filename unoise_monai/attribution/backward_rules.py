"""Rules in place of the gradient of a module, one call at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Rule: TypeAlias = Callable[[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]
"""From what went into a module and came out of it, to a function from the gradient with respect to its input and the
one with respect to its output, to what goes back in place of the former."""


@contextmanager
def own_inputs(modules: list[nn.Module], dtype: torch.dtype | None = None) -> Iterator[None]:
    """Give each call of the modules a copy of its input, as ``dtype`` where it is given.

    Captum hooks the input itself, which in a network with skip connections is another layer's input too: the rule
    would act on the gradients of both.
    """

    def copy_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(dtype or inputs[0].dtype, copy=True), *inputs[1:])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(copy_input).remove)
        yield


@contextmanager
def own_output(layer: nn.Module) -> Iterator[None]:
    """Give what follows a layer a copy of its output, whatever hooks it gets: networks may add to it in place."""
    handle = layer.register_forward_hook(lambda module, inputs, output: output.clone())

    def stay_last(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Captum's hooks, which come later, replace the output by tensors that must not be written to.
        module._forward_hooks[handle.id] = module._forward_hooks.pop(handle.id)

    with ExitStack() as stack:
        stack.callback(handle.remove)
        stack.callback(layer.register_forward_pre_hook(stay_last).remove)
        yield


@contextmanager
def backward_rule(modules: list[nn.Module], rule: Rule) -> Iterator[None]:
    """Send a rule's values back through the modules; forward they give what they gave.

    Captum has such rules for ReLU modules alone. Any module of one input and one output can follow one here, however
    often it is called, as long as it is not in place (`attributing`).
    """

    def follow(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        backward = rule(inputs[0].detach(), output.detach())
        upstream: list[Tensor] = []
        output.register_hook(upstream.append)
        # Under autocast a module may give another number format than it got.
        inputs[0].register_hook(lambda gradient: backward(gradient, upstream.pop()).to(gradient.dtype))

    with own_inputs(modules), ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(follow).remove)
        yield
