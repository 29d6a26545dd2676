"""The layers of a network from first to last, found by watching a pass: where it goes down, turns, and comes up."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.networks.layers.simplelayers import SkipConnection
from torch import Tensor, nn

from unoise_monai.inference.tiling import PROBE_SIDE
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.networks.modes import evaluating
from unoise_monai.types import Image


class Layer(NamedTuple):
    """A module of a network whose output lies on a grid of the image's extent."""

    path: str
    """Of the module, as in ``network.get_submodule(path)``."""
    factor: tuple[float, ...]
    """How many times coarser than the image's its grid is, along each axis."""
    channels: int


class _Output(NamedTuple):
    """What a module gave in a pass."""

    order: int
    path: str
    depth: int
    """How many calls of modules it lies within, those of the network and of skip connections not counted."""
    grid: tuple[int, ...]
    channels: int
    spans: bool
    """Whether a module within it works on a coarser grid than it takes and gives: it holds whole levels."""
    logits: bool
    """Whether it is what the network gives, too."""


def find_layers(network: nn.Module | VolumeNetwork, image: Image) -> dict[str, Layer]:
    """Each resolution's last features on the way down and on the way up, in the order of the pass.

    Watches the modules of one pass over zeros: a small block where the network tells its ``stride``, the image's own
    size where it doesn't. The features of a stage are what its outermost modules give last before the next grid, but
    for the logits themselves. A network without a way up, such as a classifier's encoder, has no decoder.

    Args:
        network: from images to logits.
        image: ``(B, C, *spatial)``, for its size.

    Returns:
        ``encoder.0``, ``encoder.1``, ... from the finest grid on, ``bottleneck``, the coarsest, and ``decoder.0``, ...
        up to the finest, each with its layer. Names are the paths themselves for this project's own networks, but for
        the bottleneck, the last of the encoder.

    Raises:
        ValueError: when the network is scripted, so that hooks see nothing, or is a single layer.
    """
    return _named(_watch(network, image))


def layer_named(network: nn.Module | VolumeNetwork, name: str, image: Image) -> Layer:
    """The layer of a module path, or of a name that `find_layers` gives; a path goes before a name.

    Raises:
        ValueError: when it is neither, or the module doesn't run once in a pass, to a tensor ``(B, C, *spatial)``.
    """
    outputs = _watch(network, image)
    for output in outputs[:-1]:
        if output.path == name:
            return _layer(output, outputs[-1].grid)
    layers = _named(outputs)
    if name not in layers:
        raise ValueError(
            f"layer must be one of {', '.join(layers)}, or the path of a module that runs once in a pass and gives a "
            f"tensor (B, C, *spatial), got {name!r}"
        )
    return layers[name]


def _named(outputs: list[_Output]) -> dict[str, Layer]:
    features = [output for output in outputs if not output.spans and not output.logits]
    if not features:
        raise ValueError("network must consist of layers before its last, whose logits are none, found no other")
    coarsest = min(math.prod(output.grid) for output in features)
    turn = max(at for at, output in enumerate(features) if math.prod(output.grid) == coarsest) + 1
    *down, bottom = _stages(features[:turn])
    up = reversed(_stages(reversed(features[turn:])))
    found = {f"encoder.{index}": stage for index, stage in enumerate(down)}
    found |= {"bottleneck": bottom} | {f"decoder.{index}": stage for index, stage in enumerate(up)}
    # The outermost module, and of those the last.
    last = {name: min(stage, key=lambda output: (output.depth, -output.order)) for name, stage in found.items()}
    return {name: _layer(output, outputs[-1].grid) for name, output in last.items()}


def _stages(outputs: Iterable[_Output]) -> list[list[_Output]]:
    """The outputs on each grid, up to the first that is coarser than all before it."""
    stages: list[list[_Output]] = []
    for output in outputs:
        if not stages or math.prod(output.grid) < math.prod(stages[-1][0].grid):
            stages.append([output])
        elif output.grid == stages[-1][0].grid:
            stages[-1].append(output)
    return stages


def _layer(output: _Output, size: tuple[int, ...]) -> Layer:
    return Layer(output.path, tuple(a / b for a, b in zip(size, output.grid, strict=True)), output.channels)


def _watch(network: nn.Module | VolumeNetwork, image: Image) -> list[_Output]:
    """What the modules gave in a pass, in the order in which they finished, and last of all the network itself."""
    volume = network if isinstance(network, VolumeNetwork) else VolumeNetwork(network)
    if any(isinstance(module, torch.jit.ScriptModule) for module in volume.network.modules()):
        raise ValueError("network must be a plain module for its layers to be found, got a scripted one")
    size = list(image.shape[2:])
    if volume.rule.stride is not None:
        # Two strides, as instance norm refuses a single voxel.
        size = [volume.stride * max(2, -(-PROBE_SIDE // volume.stride))] * len(size)
    watch = _Watch(image.ndim)
    handles = []
    try:
        for path, module in volume.network.named_modules():
            handles.append(module.register_forward_pre_hook(watch.enter))
            handles.append(module.register_forward_hook(partial(watch.leave, path)))
        with evaluating(volume.network):
            volume.predict(torch.zeros(1, image.shape[1], *size, device=image.device))
    finally:
        for handle in handles:
            handle.remove()
    return watch.once()


class _Watch:
    """Hooks that write down what modules give.

    Left out is what has no place: a module that runs more than once, outputs without the image's axes, or pooled to a
    single voxel, as squeeze and excitation does; and the sum or concatenation of MONAI's `SkipConnection`.
    """

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.outputs: list[tuple[weakref.ref[Tensor], _Output]] = []
        self.logits: object = None
        self.calls: Counter[str] = Counter()
        self.coarsest: list[float] = []
        """For each module that is running, the voxels of the coarsest grid within it."""
        self.skips = 0
        """How many of those are a `SkipConnection`."""

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.coarsest.append(math.inf)
        self.skips += isinstance(module, SkipConnection)

    def leave(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        within, voxels = self.coarsest.pop(), self.voxels(output)
        skip = isinstance(module, SkipConnection)
        self.skips -= skip
        self.calls[path] += 1
        self.logits = output if not path else None
        if voxels < math.inf and not skip:
            spans = within < min([voxels, *map(self.voxels, inputs)])
            order, depth, grid = len(self.outputs), len(self.coarsest) - 1 - self.skips, tuple(output.shape[2:])
            made = _Output(order, path, depth, grid, output.shape[1], spans, logits=False)
            self.outputs.append((weakref.ref(output), made))
        if self.coarsest:
            self.coarsest[-1] = min(self.coarsest[-1], within, voxels)

    def voxels(self, value: Any) -> float:
        placed = isinstance(value, Tensor) and value.ndim == self.ndim and any(side > 1 for side in value.shape[2:])
        return math.prod(value.shape[2:]) if placed else math.inf

    def once(self) -> list[_Output]:
        """The outputs of the modules that ran once."""
        once = [(tensor, output) for tensor, output in self.outputs if self.calls[output.path] == 1]
        return [output._replace(logits=tensor() is self.logits) for tensor, output in once]
