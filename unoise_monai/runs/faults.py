"""What ends a case or a run, in lines that a person can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pebble.common import ProcessExpired

from unoise_monai.data.cases import CohortCase, scrub
from unoise_monai.handlers.evaluator import cause_of
from unoise_monai.inference.memory import is_out_of_memory

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
