"""When memory runs out: smaller tiles, then the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from unoise_monai.inference.memory import default_budget

logger = logging.getLogger(__name__)

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
