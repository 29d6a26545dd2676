"""The layers of a network: which there are, their activations, and maps on their grids."""

import math
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import captum.attr
import torch
from monai.networks.layers.simplelayers import SkipConnection
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.backpropagation import own_output
from unoise_monai.attribution.base import Attributor, Call, Score, probe_side, register, signed, watching
from unoise_monai.attribution.targets import Target
from unoise_monai.inference.tiling import Slices, VolumeNetwork
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, Logits, VoxelMap


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
    """How many calls of modules it lies within, but for those of the network and of skip connections."""
    grid: tuple[int, ...]
    channels: int
    spans: bool
    """Whether it holds whole levels: a module within it works on a coarser grid than it takes and gives."""
    logits: bool


def find_layers(network: nn.Module | VolumeNetwork, image: Image) -> dict[str, Layer]:
    """Each resolution's last features on the way down and on the way up, in the order of the pass.

    Watches the modules of one pass over zeros: a small block where the network has a ``stride``, else of the size of
    the image, ``(B, C, *spatial)``. The features of a stage are what its outermost modules give last before the next
    grid, but for the logits themselves. Their names are ``encoder.0``, ``encoder.1``, ... from the finest grid on,
    ``bottleneck``, the coarsest, and ``decoder.0``, ... up to the finest; a network without a way up, such as a
    classifier's encoder, has no decoder. In this project's own networks these names are paths, but for the bottleneck,
    the encoder's last. A ValueError where the network is scripted, so that hooks see nothing, or is a single layer.
    """
    return _named(_watch(network, image))


def layer_named(network: nn.Module | VolumeNetwork, name: str, image: Image) -> Layer:
    """The layer of a module path, or of a name that `find_layers` gives; a path goes before a name.

    A ValueError where it is neither, or the module doesn't run once in a pass, to a tensor ``(B, C, *spatial)``.
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
    """What modules gave in a pass, in the order in which they finished, the network itself last.

    Left out are modules that run more than once, outputs without a grid (pooled to a single voxel, as in squeeze and
    excitation), and the sums or concatenations of MONAI's `SkipConnection`.
    """
    volume = network if isinstance(network, VolumeNetwork) else VolumeNetwork(network)
    modules = dict(volume.network.named_modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules.values()):
        raise ValueError(
            "network must be a plain module for its layers to be found, got a scripted one: load its weights into its "
            "class, or take a method that needs none, such as saliency, integrated_gradients or occlusion"
        )
    found: list[tuple[weakref.ref[Tensor], _Output]] = []
    calls: Counter[str] = Counter()
    running: list[nn.Module] = []
    # For each running module, the voxels of the coarsest grid within it.
    coarsest: list[float] = []
    latest: list[Any] = [None]

    def voxels(value: Any) -> float:
        placed = isinstance(value, Tensor) and value.ndim == image.ndim and any(side > 1 for side in value.shape[2:])
        return math.prod(value.shape[2:]) if placed else math.inf

    def enter(path: str, module: nn.Module) -> None:
        running.append(module)
        coarsest.append(math.inf)

    def leave(call: Call) -> None:
        running.pop()
        within, here, output = coarsest.pop(), voxels(call.output), call.output
        calls[call.path] += 1
        latest[0] = output
        if here < math.inf and not isinstance(call.module, SkipConnection):
            depth = sum(not isinstance(module, SkipConnection) for module in running) - 1
            spans = within < min([here, *map(voxels, call.inputs)])
            grid, channels = tuple(output.shape[2:]), output.shape[1]
            made = _Output(len(found), call.path, depth, grid, channels, spans, logits=False)
            found.append((weakref.ref(output), made))
        if coarsest:
            coarsest[-1] = min(coarsest[-1], within, here)

    known = volume.rule.stride is not None
    size = [probe_side(volume)] * (image.ndim - 2) if known else image.shape[2:]
    with evaluating(volume.network), watching(modules, leave, enter):
        volume.predict(torch.zeros(1, image.shape[1], *size, device=image.device))
    once = [(tensor, output) for tensor, output in found if calls[output.path] == 1]
    return [output._replace(logits=tensor() is latest[0]) for tensor, output in once]


Measure: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""From the `Score` of windows and the same window of the image and of other volumes to tensors on a layer's grid."""


def over_windows(
    measure: Measure, score: Score, image: Image, others: Sequence[Image] = (), copies: int = 1, linear: bool = False
) -> tuple[Tensor, ...]:
    """Measure a layer over a volume: in one window where memory allows, else in several, put together on its grid.

    Gives tensors on the layer's grid over the padded volume, float32; from several windows in main memory. They equal
    those of one to rounding: a window's logits are weighted as the target weighs them in the whole volume, and it
    reaches as far beyond its core as the core's outputs see. For that the volume must have ``clips=True``. (Hooks on a
    layer don't see through `VolumeNetwork`, which runs each tile again on the way back.)

    Args:
        measure: called with a `Score` and windows of ``image``, ``(1, C, *spatial)``, and ``others`` that require
            gradients, gives tensors ``(1, C', *grid)``; each may lie on a grid of its own that divides the stride.
        others: such as a baseline, each of the image's shape.
        copies: how many copies of the volume go through at once in ``measure``, at least.
        linear: whether it weighs logits of other images than ``image``: over windows, the target must then be linear.

    Raises:
        ValueError: when windows are needed and the target is not linear in the logits though ``linear`` asks for it, or
            the layer's grid does not divide the network's stride.
        MemoryError: when windows are needed and the network cannot be tiled exactly, or the smallest is too large.
    """
    volume = score.volume
    inputs = [volume.pad(one.detach()) for one in (image, *others)]
    size = inputs[0].shape[2:]
    tiles = volume.tiles(inputs[0].expand(copies, *inputs[0].shape[1:]))
    if tiles is None:
        within: Slices = tuple(slice(side) for side in image.shape[2:])
        whole = Score(volume, lambda logits: score.target(logits[(..., *within)]), max(copies, score.copies), True)
        return tuple(part.detach().float() for part in measure(whole, *(one.requires_grad_() for one in inputs)))
    weights = _logit_weights(score, image, linear)
    stitched: list[Tensor] = []
    for window, core, inner in tiles:
        weighted = Score(volume, partial(_weighted, weights[(..., *window)]), copies, windows=True)
        parts = measure(weighted, *(one[(..., *window)].clone().requires_grad_() for one in inputs))
        for index, part in enumerate(parts):
            factors = [_factor(one, side) for one, side in zip(window, part.shape[2:], strict=True)]
            if index == len(stitched):
                grid = [side // factor for side, factor in zip(size, factors, strict=True)]
                stitched.append(torch.empty(1, part.shape[1], *grid))
            at, inside = _coarser(core, factors), _coarser(inner, factors)
            stitched[index][(..., *at)] = part[(..., *inside)].detach().float().cpu()
    return tuple(stitched)


def _logit_weights(score: Score, image: Image, linear: bool) -> Tensor:
    """The target's gradient with respect to the logits of the padded volume, ``(1, K, *padded)``."""
    with torch.no_grad():
        logits = score.volume(image)
    weights = _gradient(score, logits)
    if linear:
        # A linear target has one gradient everywhere; common others have another at this scale and sign.
        elsewhere = _gradient(score, -0.5 * logits)
        if not torch.allclose(weights, elsewhere, rtol=1e-5, atol=1e-6 * float(weights.abs().max())):
            raise ValueError(
                "target must be linear in the logits, such as a sum or mean of logits over a region, where the volume "
                f"goes through in windows, got {type(score.target).__name__}; or raise memory_gb to hold the volume"
            )
    ends = [-side % score.volume.stride for side in image.shape[2:]]
    return F.pad(weights, [n for end in reversed(ends) for n in (0, end)])


def _gradient(score: Score, logits: Logits) -> Tensor:
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(score.target(logits).sum(), logits)[0]


def _weighted(weights: Tensor, logits: Logits) -> Tensor:
    return (logits * weights).flatten(1).sum(dim=1)


def _factor(window: slice, side: int) -> int:
    """How many times coarser than the image's a layer's grid is."""
    length = window.stop - window.start
    if length % side:
        raise ValueError(f"layer must lie on a grid that divides the network's stride, got {side} for {length} voxels")
    return length // side


def _coarser(slices: Slices, factors: Sequence[int]) -> Slices:
    if any(one.start % factor or one.stop % factor for one, factor in zip(slices, factors, strict=True)):
        raise ValueError(f"layer must lie on a grid that divides the network's stride, got factors {tuple(factors)}")
    return tuple(slice(one.start // factor, one.stop // factor) for one, factor in zip(slices, factors, strict=True))


class LayerAttributor(Attributor):
    """An attribution to the outputs of one layer, up-sampled to the image.

    ``layer`` is a name (`find_layers`), such as ``"bottleneck"`` or ``"decoder.0"``, or the path of a module. The sign
    is taken on the layer's own grid, from which values are interpolated linearly, each at the centre of the voxels that
    it stands for. Where a volume does not fit ``memory_gb``, the layer's grid is put together from windows
    (`over_windows`). In the call, a ValueError where the network has no such layer.
    """

    needs = ("layer",)
    clips = True
    copies: ClassVar[int] = 1
    """Copies of a window that a pass takes, at least."""

    def __init__(self, network: nn.Module, layer: str = "bottleneck", **options: Any) -> None:
        super().__init__(network, **options)
        self.layer = layer

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return {"layer": layer_named(volume, self.layer, image).path}

    def maps(self, images: Image, score: Score) -> Tensor:
        layer = score.volume.network.get_submodule(score.notes["layer"])
        with own_output(layer):
            return self.place(self.on_layer(images, score, layer), images, score)

    @abstractmethod
    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        """The attribution on the layer's grid over the padded volume, ``(1, C', *grid)``, with its sign."""

    def place(self, values: Tensor, image: Image, score: Score) -> Tensor:
        """The attribution on the image's grid, ``(1, 1, *spatial)``."""
        return on_image(signed(values.detach(), self.sign), score.volume.pad(image).shape[2:], image)


@register
class LayerActivation(LayerAttributor):
    """How strongly a layer responds: the mean magnitude of its features. What it responds to, whatever the target.

    Two passes forward at most. It shows where the features are large, not whether the segmentation uses them.
    """

    name = "layer_activation"

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        method = captum.attr.LayerActivation
        (features,) = over_windows(lambda score, window: (method(score, layer).attribute(window),), score, image)
        return features / features.shape[1]


def on_image(values: Tensor, padded: torch.Size, image: Image) -> Tensor:
    """Values of a layer, ``(1, C', *grid)`` over the padded volume, on the image's grid, linearly interpolated."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    finer = F.interpolate(values.to(image.device), size=padded, mode=mode, align_corners=False)
    within: Slices = tuple(slice(side) for side in image.shape[2:])
    return finer[(..., *within)]


def every_layer(
    method: Callable[..., Attributor], network: nn.Module, image: Image, target: Target, **options: Any
) -> dict[str, VoxelMap]:
    """The maps of all layers that `find_layers` finds, by name, from the first to the last: for `layer_grid`.

    ``method`` is a class that takes a ``layer``, such as `GradCAM`, and ``options`` its other options. Each map is
    ``(B, 1, *spatial)`` of the image ``(B, C, *spatial)``, with its geometry.
    """
    layers = find_layers(network, image)
    return {name: method(network, layer=layer.path, **options)(image, target) for name, layer in layers.items()}
