"""Whether a map changes when the network's weights become random."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import watching
from unoise_monai.attribution.targets import Target
from unoise_monai.metrics.faithfulness import checked_map
from unoise_monai.metrics.overlap import rank_correlation, structural_similarity
from unoise_monai.types import Image, VoxelMap

Layer: TypeAlias = list[tuple[str, nn.Module]]
"""Modules and their names: one with a weight of two or more axes, and the norms and activations that follow it."""


def weighted_layers(network: nn.Module, called: Mapping[str, None]) -> list[Layer]:
    """The layers of a network, the last first.

    Args:
        network: a network.
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
        if own or (list(module.buffers(recurse=False)) and hasattr(module, "reset_parameters")):
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
    with watching(dict(network.named_modules()), lambda call: None, lambda name, _: called.setdefault(name)):
        yield called


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
                for tensor, value in zip(_own(module), _own(fresh), strict=True):
                    tensor.copy_(value)
            else:
                for parameter in module.parameters(recurse=False):
                    scale = parameter.square().mean().sqrt().cpu()
                    parameter.copy_(scale * torch.randn(parameter.shape))


def _own(module: nn.Module) -> list[Tensor]:
    """A module's own parameters and buffers, without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


class RandomisationResult(NamedTuple):
    """The map of a network that is random from its last layer down, compared with the map of the trained one."""

    layers: tuple[str, ...]
    """Down to which layer the network was random, one name a step, from the last layer to the first."""
    correlation: Tensor
    """Spearman's rank correlation of the maps' magnitudes, ``where`` they are compared, ``(steps, B)``."""
    ssim: Tensor
    """Structural similarity of the maps' magnitudes, each scaled to [0, 1], ``(steps, B)``."""
    unchanged: Tensor
    """Whether the correlation is above ``limit`` when all weights are random, ``(B,)``, bool."""


def randomisation(
    attributor: Callable[[Image, Target], VoxelMap],
    image: Image,
    target: Target,
    where: VoxelMap | None,
    *,
    seed: int,
    network: nn.Module | None = None,
    steps: int | None = None,
    limit: float = 0.5,
) -> RandomisationResult:
    """Compare a map with those of the same network, its weights made random layer by layer, from the last to the first.

    Adebayo et al., "Sanity checks for saliency maps", 2018, section 3.1, cascading randomisation. A map that stays as
    it was shows the image, not the network.

    Far from the target of a segmentation every network's gradient fades. Over the whole volume that alone can keep the
    correlation above 0.5, so it is taken ``where`` the target lies, such as in the segmented voxels. SSIM is of the
    whole volume, which its windows need.

    A layer is a convolution with the norms and activations that follow it in the pass (`weighted_layers`); its modules'
    own initialisation makes it random (`randomise`). A map without contrast counts as correlated by 0, two such by 1.

    Args:
        attributor: from an image and a target to a map.
        image: ``(B, C, *spatial)``.
        target: what the map explains, made from the logits of the trained network.
        where: the voxels whose ranks are compared, ``(B, 1, *spatial)``, bool; None for all.
        seed: of the random weights; those of a layer don't depend on ``steps`` or the device.
        network: whose weights are made random; the attributor's ``network`` by default.
        steps: how many maps to make, of about equally many layers each; None for one a layer.
        limit: of the rank correlation, above which a map is called unchanged.

    Raises:
        TypeError: when ``network`` is not given and the attributor has none.
        ValueError: when ``steps`` is below 1, ``where`` holds no voxel of an item, the network has no weights, or a map
            is not one channel on the image's grid or not finite.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if where is not None:
        where = checked_map(where, image, "where").bool()
        if not bool(where.flatten(1).any(dim=1).all()):
            raise ValueError("where must hold at least one voxel of every item, got an item without")
    network = getattr(attributor, "network", None) if network is None else network
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be given where the attributor has none, got {type(network).__name__}")

    def explain() -> VoxelMap:
        return checked_map(attributor(image, target), image, "the attributor's map").abs()

    with order_of_calls(network) as called:
        original = explain()
    layers = weighted_layers(network, called)
    names, correlations, similarities = [], [], []
    with kept_weights(network):
        for step in torch.arange(len(layers)).tensor_split(min(steps or len(layers), len(layers))):
            for index in step.tolist():
                randomise(layers[index], seed + index)
            changed = explain()
            names.append(layers[step[-1]][0][0] or type(network).__name__)
            correlations.append(rank_correlation(original, changed, where))
            similarities.append(structural_similarity(original, changed))
    return RandomisationResult(
        tuple(names), torch.stack(correlations), torch.stack(similarities), correlations[-1] > limit
    )
