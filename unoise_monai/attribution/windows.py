"""What a layer of a network does for a target, over volumes of any size: whole, or window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.base import Score
from unoise_monai.inference.volume import Slices, VolumeNetwork
from unoise_monai.types import Image, Logits


class WindowScore(nn.Module):
    """A scalar of the logits of a window, as a function of images on the network's grid: what Captum hooks.

    Args:
        volume: the network.
        read: from the window's logits to one scalar an item.
        copies: how many copies of the window may go through at once.

    Shape:
        ``(n, C, *window)`` to ``(n,)``.

    Raises:
        ValueError: in the call, when ``read`` does not give one scalar an item.
    """

    def __init__(self, volume: VolumeNetwork, read: Callable[[Logits], Tensor], copies: int = 1) -> None:
        super().__init__()
        self.volume, self.read, self.copies = volume, read, copies

    def forward(self, images: Image) -> Tensor:
        scores = self.read(self.volume.predict(images))
        if scores.shape != images.shape[:1]:
            raise ValueError(f"target must give one scalar an item, ({len(images)},), got {tuple(scores.shape)}")
        return scores


Measure: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""From a `WindowScore`, a window of the image and the same window of other volumes to tensors on a layer's grid."""


def over_windows(
    measure: Measure, score: Score, image: Image, others: Sequence[Image] = (), copies: int = 1, linear: bool = False
) -> tuple[Tensor, ...]:
    """Measure a layer over a volume: in one window where memory allows, else in several, put together on its grid.

    A window's logits are weighted as the target weighs them in the whole volume, and a window reaches beyond its core
    as far as the core's outputs see: what is kept of it equals one pass to rounding. (Hooks on a layer don't see
    through `VolumeNetwork`, which runs each tile again on the way back.) The volume must have been made with
    ``clips=True``, which gives windows that reach so far.

    Args:
        measure: called with a `WindowScore` and windows of ``image`` and ``others`` that require gradients, gives
            tensors ``(1, C', *grid)``; each may lie on a grid of its own that divides the network's stride.
        score: the target as a function of the volume.
        image: ``(1, C, *spatial)``.
        others: such as a baseline, each of the image's shape.
        copies: how many copies of the volume go through at once in ``measure``, at least.
        linear: whether it weighs logits of other images than ``image``: over windows, the target must then be linear.

    Returns:
        The tensors on the layer's grid over the padded volume, float32; of several windows in main memory.

    Raises:
        ValueError: when windows are needed and ``linear`` is asked of a target that is not linear in the logits, or the
            layer's grid does not divide the network's stride.
        MemoryError: when windows are needed and the network cannot be tiled exactly, or the smallest is too large.
    """
    volume = score.volume
    inputs = [volume.pad(one.detach()) for one in (image, *others)]
    size = inputs[0].shape[2:]
    tiles = volume.tiles(inputs[0].expand(copies, *inputs[0].shape[1:]))
    if tiles is None:
        within: Slices = tuple(slice(side) for side in image.shape[2:])
        whole = WindowScore(volume, lambda logits: score.target(logits[(..., *within)]), max(copies, score.copies))
        return tuple(part.detach().float() for part in measure(whole, *(one.requires_grad_() for one in inputs)))
    weights = _logit_weights(score, image, linear)
    stitched: list[Tensor] = []
    for window, core, inner in tiles:
        weighted = WindowScore(volume, partial(_weighted, weights[(..., *window)]), copies)
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
        # A linear target has one gradient everywhere; of common others, neither the scale nor the sign keeps it.
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
        (gradient,) = torch.autograd.grad(score.target(logits).sum(), logits)
    return gradient


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
