"""What ends a case or a run, in lines that a person can act on; and less memory where it has run out."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pebble.common import ProcessExpired

from unoise_monai.data.cases import CohortCase, scrub
from unoise_monai.handlers.evaluator import cause_of
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


OUTPUT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}
LONGEST = 500


class OutputFault(RuntimeError):
    """The output cannot be written: no other case could be, either."""


def failure(case: CohortCase, digest: str, stage: str, error: BaseException) -> dict[str, Any]:
    """The record of a case that failed.

    Args:
        case: that failed.
        digest: of the run's settings.
        stage: ``"load"``, ``"explain"`` or ``"save"``.
        error: what was raised; its message keeps no path of the case.
    """
    return {
        "case": case.name,
        "status": "failed",
        "settings": digest,
        "shown": case.shown,
        "stage": stage,
        "reason": reason_for(case, error),
    }


def reason_for(case: CohortCase, error: BaseException, folders: Sequence[str | Path] = ()) -> str:
    """What an error means to a person, in one line, without the paths of the case's files and of these folders."""
    text = reason(error)
    for folder in folders:
        text = text.replace(f"{os.fspath(folder)}{os.sep}", "")
    return " ".join(scrub(text, case).split())[:LONGEST]


def reason(error: BaseException) -> str:
    """What an error means to a person."""
    error = cause_of(error)
    if isinstance(error, (FutureTimeout, TimeoutError)):
        return "reading took too long: the file or its storage hangs; try it alone, or raise --timeout"
    if isinstance(error, ProcessExpired):
        return f"the reading process ended with code {error.exitcode}: the file is corrupt, or memory ran out"
    if isinstance(error, BrokenProcessPool):
        return "the reading processes ended before they could read: memory ran out; try --workers 0"
    if isinstance(error, Exception) and is_out_of_memory(error):
        return f"out of memory: {error}; try --fast, or a machine with more"
    if isinstance(error, OSError) and error.errno:
        return f"{os.strerror(error.errno)}: {error}"
    # The project's own errors say all in their text; the name of others helps to find what they are.
    known = isinstance(error, ValueError) and type(error).__module__.startswith("unoise_monai")
    return str(error) if known else f"{type(error).__name__}: {error}"


def check_output_fault(error: BaseException) -> None:
    """Raise an `OutputFault` where an error of writing is one that every other case would meet, too."""
    if isinstance(error, OSError) and error.errno in OUTPUT_ERRNOS:
        raise OutputFault(
            f"output must be writable, got: {os.strerror(error.errno)}. What is done is kept; start again to go on"
        ) from error
