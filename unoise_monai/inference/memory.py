"""How much memory a pass takes, how much there is, and in which number format it runs."""

import itertools
import logging
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unoise_monai.checks import check_choice

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_fast_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware: AVX512-BF16 or AMX on x86, the BF16 extension on ARM."""
    if not torch.backends.mkldnn.is_available():
        return False
    # Public from torch 2.10 on; an older torch says the same of x86 by two private functions.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(bool(found.get(name, False)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def resolve_precision(device: torch.device | str, precision: str = "auto") -> torch.dtype:
    """The number format that ``precision`` means on ``device``.

    ``"auto"`` is bf16 on a CUDA device with bf16 units and fp16 on an older one; bf16 on a CPU that multiplies it in
    hardware; fp32 everywhere else.

    Raises:
        ValueError: when ``precision`` is unknown, or is ``"fp16"`` on a CPU.
    """
    check_choice("precision", precision, PRECISIONS)
    device = torch.device(device)
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU; on a CPU it must be 'auto', 'bf16' or 'fp32'")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_units else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_fast_bf16() else torch.float32


def differentiable(device: torch.device | str, precision: str) -> str:
    """``precision``, but ``"fp32"`` for what `resolve_precision` makes fp16: gradients underflow in it, unscaled."""
    return "fp32" if resolve_precision(device, precision) == torch.float16 else precision


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 convolutions with all of the mantissa on CUDA, of which TF32 keeps ten bits; the setting comes back.

    cuDNN reads the setting when it runs, so a pass back is exact where this holds around it as well.
    """
    cudnn = torch.backends.cudnn
    tf32 = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32 = tf32


@contextmanager
def autocast(device: torch.device | str, precision: str = "auto") -> Iterator[torch.dtype]:
    """Run the block in ``precision`` on ``device``; yields the number format that it resolved to.

    ``"fp32"`` is float32 also inside an outer autocast, and on CUDA without TF32, see `without_tf32`, which a pass
    back needs around it too. The settings come back as they were.
    """
    device = torch.device(device)
    dtype = resolve_precision(device, precision)
    plain = dtype == torch.float32
    cast = torch.autocast(device.type, enabled=False) if plain else torch.autocast(device.type, dtype=dtype)
    with without_tf32() if plain else nullcontext(), cast:
        yield dtype


def to_fast_layout(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B, C, *spatial)`` with the channels last in memory where convolutions in ``dtype`` are faster so.

    Only the input needs it: convolutions pass the layout on, and the network's weights stay as they are. A depth-4,
    channel-factor-4 3D U-Net on an AMX CPU took 0.69 s in fp32, 0.25 s in bf16, 0.14 s in bf16 with this input, and
    0.11 s with the weights converted too. In fp32 the layout gains nothing (0.70 s), so ``x`` comes back as it is.
    """
    if dtype == torch.float32 or x.ndim not in (4, 5):
        return x
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    # `contiguous` leaves a one-channel tensor's strides alone, and convolutions decide by the strides.
    return x.clone(memory_format=layout)


def to_float32(output: Any, like: Tensor) -> Any:
    """Every tensor in ``output`` (tuples, lists, dictionaries) in float32, with the geometry of ``like``."""
    if isinstance(output, Tensor):
        output = output.float().contiguous()
        return MetaTensor(output).copy_meta_from(like, copy_attr=False) if isinstance(like, MetaTensor) else output
    if isinstance(output, dict):
        return {key: to_float32(value, like) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        values = [to_float32(value, like) for value in output]
        return values if isinstance(output, list) else tuple(values)
    return output


class AutocastInferer(Inferer):
    """MONAI's `SimpleInferer` in the machine's fast precision, with float32 out: for training and small volumes.

    Autocast covers the forward pass only, as PyTorch recommends: the loss is computed in float32, and gradients flow.
    The same depth-4 U-Net trained 4.2 times as fast in bf16 as in fp32 on an AMX CPU. In fp16 the gradients need a
    scaler, as ever (MONAI's trainers bring one with ``amp=True``), so ``"auto"`` trains in fp32 where bf16 is missing.

    Args:
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``, see `resolve_precision`.

    Raises:
        ValueError: when ``precision`` is unknown; in the call, when it is ``"fp16"`` and the input is on a CPU.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        precision = self.precision
        if precision == "auto" and torch.is_grad_enabled():
            precision = differentiable(plain.device, precision)
        with autocast(plain.device, precision) as dtype:
            output = network(to_fast_layout(plain, dtype), *args, **kwargs)
        return to_float32(output, inputs)


WORKSPACE = 1.5
"""What a pass really takes, over its live tensors: convolutions reorder their operands in buffers of their own.

Resident memory over live tensors was 1.14 to 1.33 for nine U-Nets of depth 2 to 5 and channel factor 3 to 6, in fp32
and bf16, on 64^3 to 128^3 voxels on an AMX CPU. Tiles kept to their budget there too (0.31 of 0.45 GB, 0.68 of 1.0 GB,
1.13 of 1.5 GB), but for what glibc's allocator holds on to of tensors below 32 MB: up to 0.3 GB, and nothing with
``MALLOC_MMAP_THRESHOLD_=1048576`` in the environment.
"""

CGROUP = Path("/sys/fs/cgroup")
_COSTS: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], PassCost]]" = weakref.WeakKeyDictionary()


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
    if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()).isdigit():
        # The page cache counts as used, though the kernel gives it up on demand.
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        used = int((CGROUP / "memory.current").read_text(encoding="utf-8")) - int(statistics["inactive_file"])
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
