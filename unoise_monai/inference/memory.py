"""How much memory a forward pass takes, how much there is, and the tiles of a volume that fit it."""

from __future__ import annotations

import itertools
import logging
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger(__name__)

WORKSPACE = 1.5
"""What a pass really takes, over its live tensors: convolutions reorder their operands in buffers of their own.

Resident memory over live tensors was 1.14 to 1.33 for nine U-Nets of depth 2 to 5 and channel factor 3 to 6, in fp32
and bf16, on 64^3 to 128^3 voxels on an AMX CPU. Tiles kept to their budget there too (0.31 of 0.45 GB, 0.68 of 1.0 GB,
1.13 of 1.5 GB), but for what glibc's allocator holds on to of tensors below 32 MB: up to 0.3 GB, and nothing with
``MALLOC_MMAP_THRESHOLD_=1048576`` in the environment.
"""

CGROUP = Path("/sys/fs/cgroup")
_COSTS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], PassCost]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class PassCost:
    """What one pass takes: ``bytes_per_voxel`` of its input's grid, and ``fixed_bytes`` for cast weights."""

    bytes_per_voxel: float
    fixed_bytes: int
    out_channels: int


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once, without a hook on the network.

    Args:
        ignored_shapes: of tensors that don't count.
        existing: tensors that were there before; views of them and writes into them don't count.
    """

    def __init__(self, ignored_shapes: Collection[torch.Size] = (), existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._ignored = ignored_shapes
        # Kept, so that no new storage takes the id of one of them.
        self._existing = [tensor.untyped_storage() for tensor in existing]
        self._live = {id(storage): 0 for storage in self._existing}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, Tensor) and tensor.shape not in self._ignored:
                self._track(tensor.untyped_storage())
        return output

    def _track(self, storage: torch.UntypedStorage) -> None:
        # The storage's Python object lives as long as its memory, through views and in-place operations.
        if id(storage) not in self._live:
            self._live[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self._live.pop, id(storage)).atexit = False
            self.peak = max(self.peak, sum(self._live.values()))


def measure_pass(
    network: nn.Module,
    predict: Callable[[Tensor], Tensor],
    block: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    gradient: bool = False,
) -> PassCost:
    """What a pass of ``network`` costs, measured once per network, channels, device and dtype on a block of zeros.

    Counts every operation's results while they live, times `WORKSPACE`; casts of the weights, which don't grow with the
    volume, are the ``fixed_bytes``. Hooks on the network run for this pass too.

    Args:
        network: what the measurement is remembered for.
        predict: runs the network on ``(1, C, *spatial)``, casts and all, to ``(1, K, *spatial)``.
        block: ``(1, C, *spatial)``, a small input that the network takes.
        device: where it runs.
        dtype: the number format that ``predict`` runs in.
        gradient: count the pass back to the input, too.
    """
    costs = _COSTS.setdefault(network, {})
    key = (block[1], len(block), str(device), dtype, gradient)
    if key in costs:
        return costs[key]
    parameters = list(network.parameters())
    with torch.set_grad_enabled(gradient), LiveTensors({parameter.shape for parameter in parameters}) as tensors:
        image = torch.zeros(block, device=device, requires_grad=gradient)
        output = predict(image)
        if gradient:
            torch.autograd.grad(output.sum(), image)
    costs[key] = PassCost(
        bytes_per_voxel=WORKSPACE * tensors.peak / math.prod(block[2:]),
        fixed_bytes=0 if dtype == torch.float32 else sum(weight.numel() for weight in parameters) * dtype.itemsize,
        out_channels=output.shape[1],
    )
    return costs[key]


def default_budget(device: torch.device) -> int:
    """Bytes that a pass may take where the user names no budget: 80% of the free CUDA memory, half of the free RAM."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(0.8 * (free + cached))
    return _available_ram() // 2


def fitting_tile(cost: PassCost, shape: Sequence[int], stride: int, halo: int, budget: float) -> tuple[int, ...]:
    """The tile of the fewest that cover a padded image ``(B, C, *spatial)`` within ``budget`` bytes.

    Raises:
        MemoryError: when the smallest tile takes more.
    """
    batch, channels, *grid = shape
    # Beside the pass itself there are the padded image and the output that tiles are written to, in float32.
    fixed = cost.fixed_bytes + 4 * batch * (channels + cost.out_channels) * math.prod(grid)
    per_voxel = batch * cost.bytes_per_voxel
    tile = fewest_tiles(grid, stride, halo, (budget - fixed) / per_voxel)
    need = fixed + per_voxel * math.prod(tile)
    if need > budget:
        raise MemoryError(
            f"memory_gb must be at least {math.ceil(need / 1e6) / 1e3} for the smallest tile {tile} of a volume of "
            f"{tuple(grid)} voxels, with stride {stride} and halo {halo}, got {budget / 1e9:.3f}"
        )
    return tile


def fewest_tiles(size: Sequence[int], stride: int, halo: int, max_voxels: float) -> tuple[int, ...]:
    """The tile, in voxels, that covers a volume in the fewest tiles, all equal, of at most ``max_voxels``.

    With ``m`` the halo rounded up to the stride, ``n`` tiles of ``t`` cover a side of ``n t - 2 m (n - 1)``: neighbours
    share two halos, and a tile at the border needs none beyond it. Of equal counts, the least voxels win.

    Args:
        size: the volume's sides, multiples of ``stride``.
        stride: the grid that tiles start and end on.
        halo: voxels of context that an output voxel needs on each side.
        max_voxels: the most that a tile may have; where nothing is that small, the smallest tile is the answer.
    """
    overlap = 2 * -(-halo // stride)
    options = []
    for units in (side // stride for side in size):
        extents = {1: units}
        for extent in range(units - 1, overlap, -1):
            extents[-(-(units - overlap) // (extent - overlap))] = extent
        options.append(list(extents.items()))
    limit = max_voxels / stride ** len(size)
    tiles = [tile for tile in itertools.product(*options) if math.prod(extent for _, extent in tile) <= limit]
    best = min(
        tiles or [tuple(extents[-1] for extents in options)],
        key=lambda tile: (math.prod(count for count, _ in tile), math.prod(extent for _, extent in tile)),
    )
    return tuple(extent * stride for _, extent in best)


def _available_ram() -> int:
    """Bytes of RAM that this process can get: the system's own figure, or its container's limit if that is lower."""
    available: int = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        # The page cache counts as used, though the kernel gives it up on demand.
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])
        available = min(available, max(0, int(most) - used))
    return available


T = TypeVar("T")
HALVINGS = 3
EXHAUSTED = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What PyTorch says where it raises a plain RuntimeError."""


class Attempt(NamedTuple):
    """Where and within what a network is to run; ``note`` is empty for the first attempt."""

    device: torch.device
    memory_gb: float | None
    note: str


def attempts(device: torch.device, memory_gb: float | None) -> Iterator[Attempt]:
    """As asked, then with half the memory, a quarter and an eighth, and, from a GPU, on the CPU."""
    yield Attempt(device, memory_gb, "")
    budget = default_budget(device) / 1e9 if memory_gb is None else memory_gb
    for halving in range(1, HALVINGS + 1):
        less = budget / 2**halving
        yield Attempt(device, less, f"out of memory: tiles within {less:.3g} GB")
    if device.type != "cpu":
        yield Attempt(torch.device("cpu"), None, "out of memory: on the CPU")


def with_less_memory(
    run: Callable[[Attempt], T], device: torch.device, memory_gb: float | None, name: str
) -> tuple[T, str]:
    """What ``run`` gives at the first attempt that the memory is enough for, and that attempt's note.

    Raises:
        MemoryError: when it is not enough for the last one, either.
    """
    last: Exception | None = None
    for attempt in attempts(device, memory_gb):
        if last is not None:
            logger.warning("%s: %s", name, attempt.note)
        try:
            return run(attempt), attempt.note
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Without its frames, whose tensors would stay on the device.
            last = error.with_traceback(None)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise MemoryError(f"memory must hold one tile of the volume, which it does not: {last}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of the GPU or the main one, has run out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in EXHAUSTED)
