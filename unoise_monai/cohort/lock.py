"""One run at a time on an output, or on each part of it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

STATE = ".unoise"
"""Folder of an output that holds the run's own state."""
SECONDS = 60.0
"""How long to wait for a lock that is held for moments only."""


class OutputInUse(RuntimeError):
    """Another run writes to the same output."""


@contextmanager
def claimed(output: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold an output, or part K of N of it, for this run alone; the system lets go when the process ends, however.

    Parts of one N run side by side; a run of the whole, or of other parts, does not run beside them.

    Raises:
        OutputInUse: when another run holds it; it names that run's machine and process.
    """
    state = output / STATE
    state.mkdir(parents=True, exist_ok=True)
    mine = "whole" if part is None else f"part-{part[0]}-of-{part[1]}"
    family = "whole" if part is None else f"-of-{part[1]}"
    with ExitStack() as stack:
        # Whoever is second sees the first one's lock.
        with claiming(output):
            for lock in sorted(state.glob("*.run")):
                if lock.stem == mine or not lock.stem.endswith(family):
                    with _taken(lock, output):
                        pass
            stack.enter_context(_taken(state / f"{mine}.run", output))
            owner = state / f"{mine}.owner"
            owner.write_text(json.dumps({"machine": socket.gethostname(), "process": os.getpid()}))
            stack.callback(owner.unlink, missing_ok=True)
        yield


@contextmanager
def claiming(output: Path) -> Iterator[None]:
    """Hold, for moments, what decides whose an output is and of which settings."""
    with FileLock(output / STATE / "claim.lock", timeout=SECONDS):
        yield


@contextmanager
def tables_locked(output: Path) -> Iterator[None]:
    """Hold the tables of an output for moments: whoever comes last has seen every record."""
    with FileLock(output / STATE / "tables.lock", timeout=SECONDS):
        yield


@contextmanager
def _taken(lock: Path, output: Path) -> Iterator[None]:
    try:
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout as error:
        owner = lock.with_suffix(".owner")
        who = json.loads(owner.read_text()) if owner.is_file() else {}
        raise OutputInUse(
            f"{output} must be written by one run at a time, and process {who.get('process', 'unknown')} on "
            f"{who.get('machine', 'an unknown machine')} is at it ({lock.stem})"
        ) from error
    try:
        yield
    finally:
        held.release()
