"""The activations that a network uses: a rule that acts at ReLU modules is silently none at any others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from monai.networks.blocks import activation
from torch import nn

from unoise_monai.inference.tiling import PROBE_SIDE
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.networks.modes import attributing
from unoise_monai.types import Image

RECTIFIERS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Threshold,
    activation.Swish,
    activation.MemoryEfficientSwish,
    activation.Mish,
)
"""Activation modules that let the positive pass, more or less, and hold back the negative; ReLU6 is a Hardtanh."""

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_GATES_AND_POOLS = (nn.Sigmoid, nn.Tanh, nn.Softmax, *_POOLS)
_OPERATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu",
    "Elu": "elu",
    "Celu": "celu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Hardswish": "hardswish",
    "Hardtanh": "hardtanh",
    "Threshold": "threshold",
    "Clamp": "clamp",
    "ClampMin": "clamp",
    "Maximum": "maximum",
    "Fmax": "maximum",
    "MaxPool2DWithIndices": "max_pool",
    "MaxPool3DWithIndices": "max_pool",
    "AdaptiveMaxPool2D": "adaptive_max_pool",
    "AdaptiveMaxPool3D": "adaptive_max_pool",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softmax": "softmax",
}
_POOLING = ("max_pool", "adaptive_max_pool")
_GATES = ("sigmoid", "tanh", "softmax")

Known: TypeAlias = Callable[[nn.Module], bool]
"""Whether a rule was made for a module of `RECTIFIERS`."""


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU)


@dataclass(frozen=True)
class Activations:
    """What acts between the layers of a network in one pass.

    Args:
        modules: the rectifying modules that the pass called, by path.
        functional: rectifying operations without a module of `RECTIFIERS`, such as ``F.relu``, and how often.
        pooling: maximum pooling without a module of its own, likewise.
        reused: paths of activation and pooling modules that the pass called more than once.
        gates: sigmoids, hyperbolic tangents and softmaxes without a module of their own, likewise.
        pools: the maximum pooling modules that the pass called, by path.
    """

    modules: dict[str, nn.Module]
    functional: dict[str, int]
    pooling: dict[str, int]
    reused: tuple[str, ...]
    gates: dict[str, int] = field(default_factory=dict)
    pools: dict[str, nn.Module] = field(default_factory=dict)

    def check(self, method: str, substitute: bool, known: Known = is_relu) -> dict[str, int]:
        """Refuse a network whose activations a method's rule does not reach.

        Args:
            method: its name, for the message.
            substitute: whether the rule is applied to activation modules that it was not made for.
            known: whether it was made for a module.

        Returns:
            How many modules of which kind the rule is to be applied to as well; empty where there are none.

        Raises:
            ValueError: when a rectifying operation has no module, or there are modules of other kinds than the known
                ones and ``substitute`` is False.
        """
        if self.functional:
            calls = ", ".join(f"{operation} x {count}" for operation, count in sorted(self.functional.items()))
            raise ValueError(f"network must call its activations as modules for {method}, got functional {calls}")
        others = {path: type(module).__name__ for path, module in self.modules.items() if not known(module)}
        counts = dict(Counter(others.values()))
        if others and not substitute:
            kinds = ", ".join(f"{kind} x {count}" for kind, count in counts.items())
            raise ValueError(
                f"network must have the activations that {method} has a rule for, got {kinds}, the first at "
                f"'{next(iter(others))}': the rule would pass them by; substitute=True applies it to them too"
            )
        return counts


def activations(volume: VolumeNetwork, image: Image) -> Activations:
    """The activations of a network, from its modules and from the graph of a pass over a block of the image.

    The block is small where the network tells its stride, else it is the image. Sigmoids and the like are gates and
    rectify nothing, nor do ``x * sigmoid(x)`` and ``torch.where``, which cannot be told from gates and masks. The
    larger of two counts, as the second may be 0 or a share of the first.

    Raises:
        ValueError: when the network is scripted, so that its modules cannot be hooked.
    """
    network = volume.network
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError("network must be a plain module for its activations to be found, got a scripted one")
    watched = {
        path: module for path, module in network.named_modules() if isinstance(module, RECTIFIERS + _GATES_AND_POOLS)
    }
    calls: Counter[nn.Module] = Counter()
    made: set[Any] = set()

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] += 1
        # Some are written with functions of their own, such as a sigmoid.
        made.update(_nodes((output[0] if isinstance(output, tuple) else output).grad_fn, inputs[0].grad_fn))

    with attributing(network):
        for module in watched.values():
            module.register_forward_hook(remember)
        logits = volume.predict(_block(volume, image).requires_grad_())
    found = Counter(_operation(node) for node in _nodes(logits.grad_fn) if node not in made)
    return Activations(
        {path: module for path, module in watched.items() if calls[module] and isinstance(module, RECTIFIERS)},
        {operation: count for operation, count in found.items() if operation and operation not in _POOLING + _GATES},
        {operation: count for operation, count in found.items() if operation in _POOLING},
        tuple(path for path, module in watched.items() if calls[module] > 1),
        {operation: count for operation, count in found.items() if operation in _GATES},
        {path: module for path, module in watched.items() if calls[module] and isinstance(module, _POOLS)},
    )


def _block(volume: VolumeNetwork, image: Image) -> Image:
    block = volume.pad(image[:1].detach())
    if volume.rule.stride is not None:
        # Of more than one voxel at the coarsest level, which instance norm needs.
        side = volume.stride * max(2, -(-PROBE_SIDE // volume.stride))
        for axis in range(2, block.ndim):
            block = block.narrow(axis, 0, min(side, block.shape[axis]))
    return block.clone()


def _nodes(last: Any, before: Any = None) -> Iterator[Any]:
    """The nodes of an autograd graph, each once, but for one and what only that leads to."""
    seen, waiting = {last, before}, [last]
    while waiting:
        node = waiting.pop()
        if node is not None:
            yield node
            new = {source for source, _ in node.next_functions} - seen
            seen |= new
            waiting += new


def _operation(node: Any) -> str | None:
    """The rectifying, gating or pooling operation that a node of the graph is; a clamp is one where it cuts at 0."""
    operation = _OPERATIONS.get(node.name().partition("Backward")[0])
    if operation == "clamp":
        least = getattr(node, "_saved_min", None)
        return operation if least is not None and bool(torch.as_tensor(least == 0).any()) else None
    return operation
