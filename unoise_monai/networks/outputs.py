"""What any trained network gives and asks for: one tensor of class logits, the grid of its sides, what a voxel sees."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.checks import check_choice
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, Logits

logger = logging.getLogger(__name__)

OUTPUTS = ("softmax", "sigmoid", "probabilities", "region probabilities")
"""Logits of exclusive classes, logits of a region a channel, and the probabilities of either."""
STRIDES = (1, 2, 4, 8, 16, 32, 64)
LARGEST_REACH = 512
"""Voxels beyond which a network counts as one that sees the whole volume."""


class ClassLogits(nn.Module):
    """Any segmentation network as one that gives class logits, from whatever it gives.

    Regions may overlap, and become exclusive classes as they are painted, one over the other in the channels' order:
    of logits ``s`` of regions 1 to K, class k has ``min(s_k, -max(s_j, j > k)) / 2`` and the background
    ``-max(s_j) / 2``. The largest is that of the last region that is on, and the softmax of one region its sigmoid.

    Args:
        network: a trained network.
        outputs: what its channels are, see `OUTPUTS`; one channel is a region.
        pick: the index or the key of the output at full resolution where it gives several; None where it gives one.
        stride: see `find_stride`; None where it is unknown.
        halo: see `find_halo`; None where a voxel sees the whole volume.
        labels: the class that each of K > 1 regions is painted with, in the channels' order; by default 1 to K.

    Shape:
        ``(B, C, *spatial)`` to ``(B, K, *spatial)``: of one logit still one, of K > 1 regions K + 1 classes.

    Raises:
        ValueError: when ``outputs`` is unknown, or ``labels`` are not 1 to K in any order; in the call, when there is
            no tensor at ``pick``.
    """

    order: Tensor

    def __init__(
        self,
        network: nn.Module,
        outputs: str = "softmax",
        pick: int | str | None = None,
        stride: int | None = None,
        halo: int | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("outputs", outputs, OUTPUTS)
        if labels is not None and sorted(labels) != list(range(1, len(labels) + 1)):
            raise ValueError(f"labels must be 1 to the number of regions, in any order, got {labels}")
        self.labels = None if labels is None else list(labels)
        order = [0, *(self.labels.index(label) + 1 for label in sorted(self.labels))] if self.labels else []
        self.register_buffer("order", torch.tensor(order, dtype=torch.long), persistent=False)
        self.network, self.outputs, self.pick, self.stride, self.halo = network, outputs, pick, stride, halo

    def forward(self, x: Image) -> Logits:
        if torch.jit.is_scripting():
            classes = class_logits(self.network(x), self.outputs)
        else:
            classes = class_logits(self._picked(self.network(x)), self.outputs)
        return classes.index_select(1, self.order) if self.order.numel() == classes.shape[1] else classes

    @torch.jit.unused
    def _picked(self, output: Any) -> Tensor:
        values = output if self.pick is None else output[self.pick]
        if not isinstance(values, Tensor):
            raise ValueError(f"network must give a tensor at pick={self.pick!r}, got {type(values).__name__}")
        return values


def class_logits(values: Tensor, outputs: str) -> Logits:
    """A network's output as logits of exclusive classes, see `ClassLogits`."""
    exclusive = outputs == "softmax" or outputs == "probabilities"
    if outputs.endswith("probabilities"):
        # As far as float32 tells them from 0 and 1.
        p = values.float().clamp(1e-7, 1 - 1e-7)
        values = p.log() if exclusive and values.shape[1] > 1 else torch.logit(p)
    if exclusive or values.shape[1] == 1:
        return values
    later = torch.full_like(values[:, :1], float("-inf"))
    classes: list[Tensor] = []
    for index in range(values.shape[1] - 1, -1, -1):
        region = values[:, index : index + 1]
        classes.append(torch.minimum(region, -later) / 2)
        later = torch.maximum(later, region)
    classes.append(-later / 2)
    return torch.cat(classes, dim=1).flip(1)


def pick_output(output: Any, spatial: Sequence[int]) -> int | str | None:
    """Where a network's output has its tensor on the input's grid: an index or a key of it; None where it is one.

    Raises:
        ValueError: when no tensor is on that grid.
    """
    if isinstance(output, Tensor) and tuple(output.shape[2:]) == tuple(spatial):
        return None
    named = (
        output.items()
        if isinstance(output, Mapping)
        else enumerate(output if isinstance(output, (list, tuple)) else ())
    )
    shapes = {}
    for name, value in named:
        if isinstance(value, Tensor):
            if tuple(value.shape[2:]) == tuple(spatial):
                return name
            shapes[name] = tuple(value.shape)
    got = tuple(output.shape) if isinstance(output, Tensor) else shapes or type(output).__name__
    raise ValueError(f"network must give a tensor on its input's grid {tuple(spatial)}, got {got}")


def outputs_of(values: Tensor, regions: bool) -> str:
    """What a network's channels are, of `OUTPUTS`, from its output for a real image.

    Args:
        values: ``(B, K, *spatial)``.
        regions: whether the channels are regions that may overlap, where they are logits, which do not tell.
    """
    low, high = float(values.min()), float(values.max())
    # Logits of a whole image within [0, 1] would mean that it sees next to nothing anywhere.
    if not (low >= 0 and high <= 1):
        return "sigmoid" if regions else "softmax"
    total = values.float().sum(dim=1)
    exclusive = values.shape[1] > 1 and float((total - 1).abs().max()) < 1e-2
    return "probabilities" if exclusive else "region probabilities"


def find_stride(network: nn.Module, channels: int = 1, spatial_dims: int = 3) -> int:
    """The smallest number, of `STRIDES`, whose multiples a network takes as sides and gives back on the same grid.

    Tried with an odd multiple of at least 33 voxels, so that it is a multiple of no larger stride.

    Args:
        network: any network; it comes back in the mode that it had.
        channels: of its input.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: when it takes none of them; the message is the network's own for the last one.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    problem: Exception = ValueError()
    with evaluating(network):
        for stride in STRIDES:
            side = (-(-33 // stride) | 1) * stride
            try:
                pick_output(
                    network(torch.zeros(1, channels, *[side] * spatial_dims, device=device)), [side] * spatial_dims
                )
            # A network that cannot take a size raises what its layers raise.
            except Exception as error:
                problem = error
                continue
            return stride
    raise ValueError(
        f"network must take {channels} channels of {spatial_dims}-D volumes with sides of a multiple of one of "
        f"{STRIDES}, got, for {STRIDES[-1]}: {problem}"
    ) from problem


def find_halo(network: nn.Module, stride: int, channels: int = 1, spatial_dims: int = 3, draws: int = 3) -> int | None:
    """How far, in voxels, the logits of a block of ``stride`` voxels a side see beyond its faces.

    By the gradient, along one axis at a time, in volumes of noise; rounded up to a multiple of ``stride``, for an
    activation that is off hides what it would see.

    Args:
        network: gives one tensor on its input's grid, see `ClassLogits`.
        stride: see `find_stride`.
        channels: of its input.
        spatial_dims: 2 or 3.
        draws: volumes of noise for each axis.

    Returns:
        None where it sees farther than `LARGEST_REACH`.
    """
    reaches = [_reach(network, stride, channels, spatial_dims, axis, draws) for axis in range(spatial_dims)]
    farthest = [reach for reach in reaches if reach is not None]
    return None if len(farthest) < len(reaches) else -(-max(farthest) // stride) * stride


def _reach(network: nn.Module, stride: int, channels: int, spatial_dims: int, axis: int, draws: int) -> int | None:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    room = 4 * stride
    while room <= LARGEST_REACH:
        shape = [2 * stride] * spatial_dims
        shape[axis] = 2 * room + stride
        seen = torch.zeros(shape[axis], dtype=torch.bool)
        for _ in range(draws):
            image = torch.randn(1, channels, *shape, generator=generator).to(device).requires_grad_()
            with evaluating(network), torch.enable_grad():
                logits = network(image).narrow(2 + axis, room, stride)
                weights = torch.randn(logits.shape, generator=generator).to(device)
                (gradient,) = torch.autograd.grad((logits * weights).sum(), image)
            others = [each for each in range(gradient.ndim) if each != 2 + axis]
            seen |= (gradient.abs().amax(dim=others) > 0).cpu()
        where = seen.nonzero()
        reach = max(room - int(where.min()), int(where.max()) - (room + stride - 1), 0) if len(where) else 0
        if reach < room:
            return reach
        room *= 2
    return None
