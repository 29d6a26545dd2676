"""Makes the weights of a network random, layer by layer, and brings them back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Layer: TypeAlias = list[tuple[str, nn.Module]]
"""Modules and their names: one with a weight of two or more axes, and the norms and activations that follow it."""


def weighted_layers(network: nn.Module, called: Mapping[str, None]) -> list[Layer]:
    """The layers of a network, the last first.

    Args:
        network: the network.
        called: names of its modules in the order of the pass. What has parameters and is not called itself, such as a
            projection within an attention, goes with the first layers.

    Raises:
        ValueError: when no module has parameters.
    """
    modules = dict(network.named_modules())
    names = [name for name in modules if name not in called] + [name for name in called if name in modules]
    layers: list[Layer] = []
    for name in names:
        module = modules[name]
        own = list(module.parameters(recurse=False))
        if not own and not (list(module.buffers(recurse=False)) and hasattr(module, "reset_parameters")):
            continue
        if not layers or any(parameter.ndim > 1 for parameter in own):
            layers.append([])
        layers[-1].append((name, module))
    if not layers:
        raise ValueError(f"network must have weights to randomise, got none in {type(network).__name__}")
    return layers[::-1]


@contextmanager
def order_of_calls(network: nn.Module) -> Iterator[dict[str, None]]:
    """The names of its modules, in the order in which they are first called within the block."""
    called: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
        for name, module in network.named_modules()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def kept_weights(network: nn.Module) -> Iterator[None]:
    """Weights and buffers come back exactly."""
    tensors = [*network.parameters(), *network.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)


def randomise(layer: Layer, seed: int) -> None:
    """New weights of a layer, in place, from its modules' own ``reset_parameters``.

    That of a batch norm gives the identity, running statistics included. Parameters of a module without one are drawn
    from a normal distribution of the same root mean square. All are drawn on the CPU, the same for any device.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # ``torch.manual_seed`` would seed CUDA too, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        for _, module in layer:
            if hasattr(module, "reset_parameters"):
                fresh: Any = copy.deepcopy(module).cpu()
                fresh.reset_parameters()
                values = dict(_own(fresh))
                for name, tensor in _own(module):
                    tensor.copy_(values[name])
            else:
                for parameter in module.parameters(recurse=False):
                    scale = parameter.square().mean().sqrt().cpu()
                    parameter.copy_(scale * torch.randn(parameter.shape))


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers, without those of its children."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
