"""What a map costs: time, memory, and passes of the network."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from unoise_monai.attribution.base import Call, watching
from unoise_monai.inference.memory import LiveTensors
from unoise_monai.types import Image


@dataclass
class Cost:
    """What a block of code cost; times and memory are there when it has ended."""

    image_voxels: int
    """Of one item of the image."""
    seconds: float = math.nan
    peak_bytes: int | None = None
    """The most memory at once, beyond what was there before; None where it is not measured."""
    forward_voxels: int = 0
    """That went through the network, all items and tiles together."""
    backward_voxels: int = 0
    """Whose gradients came back through it."""

    @property
    def forward_passes(self) -> float:
        """Passes of one whole image: a batch of 8 copies is 8, a tile is its part of the volume, its halo included."""
        return self.forward_voxels / self.image_voxels

    @property
    def backward_passes(self) -> float:
        """Passes back through the network, counted likewise."""
        return self.backward_voxels / self.image_voxels


@contextmanager
def measure_cost(network: nn.Module, image: Image, memory: bool = False) -> Iterator[Cost]:
    """Measure what is done with a network in a ``with`` block, whoever does it: own code, Captum or MONAI.

    Passes are counted by hooks on the network's call and on the gradient of its output, removed when the block ends.
    Padding counts as voxels. Blocks may be nested, each counts by itself.

    Memory is that of PyTorch's allocator on CUDA, where it costs nothing, but restarts the device's peak statistics.
    Elsewhere it is the peak of the tensors alive at once (`LiveTensors`), without what single operations take for
    themselves. Watching every operation takes time, so measure ``seconds`` in a run without ``memory``.

    Args:
        network: whose passes are counted; it comes back as it was.
        image: ``(B, C, *spatial)``; its size is that of a pass, its device the one that is watched.
        memory: whether to measure it.

    Yields:
        the `Cost`, which fills up in the block.

    Raises:
        RuntimeError: when the network is a TorchScript module, which takes no hooks: put it into an ``nn.Sequential``.
        ValueError: in the block, when the network is called without a tensor.
    """
    cost = Cost(math.prod(image.shape[2:]))
    handles: list[RemovableHandle] = []

    def forward(call: Call) -> None:
        taken = next((leaf for leaf in tree_leaves((call.inputs, call.options)) if isinstance(leaf, Tensor)), None)
        if taken is None:
            name = type(call.module).__name__
            raise ValueError(f"network must be called with an image, got no tensor in a call of {name}")
        voxels = len(taken) * math.prod(taken.shape[2:])
        cost.forward_voxels += voxels
        given = [leaf for leaf in tree_leaves(call.output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if given:
            # Several outputs are one pass back, whichever gradient comes first.
            handles.append(register_multi_grad_hook(given, partial(backward, voxels), mode="any"))

    def backward(voxels: int, _: Tensor) -> None:
        cost.backward_voxels += voxels

    try:
        with watching({"": network}, forward), _peak_memory(network, image, cost) if memory else nullcontext():
            _wait(image.device)
            start = time.perf_counter()
            try:
                yield cost
            finally:
                _wait(image.device)
                cost.seconds = time.perf_counter() - start
    finally:
        for handle in handles:
            handle.remove()


_PEAKS: list[tuple[torch.device, list[int]]] = []
"""Peaks that open blocks have seen: PyTorch keeps one per device, and an inner block restarts it."""


@contextmanager
def _peak_memory(network: nn.Module, image: Tensor, cost: Cost) -> Iterator[None]:
    device = image.device
    if device.type != "cuda":
        with LiveTensors(existing=(image, *network.parameters(), *network.buffers())) as tensors:
            try:
                yield
            finally:
                cost.peak_bytes = tensors.peak
        return
    _note_peaks(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    peaks = [before]
    _PEAKS.append((device, peaks))
    try:
        yield
    finally:
        _note_peaks(device)
        _PEAKS.pop()
        cost.peak_bytes = max(peaks) - before


def _note_peaks(device: torch.device) -> None:
    for where, peaks in _PEAKS:
        if where == device:
            peaks.append(torch.cuda.max_memory_allocated(device))


def _wait(device: torch.device) -> None:
    """Until all queued work is done, or the clock would stop too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
