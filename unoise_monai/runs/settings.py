"""Settings that a case's files depend on, and what ends a case or a run."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pebble.common import ProcessExpired

from unoise_monai.atomic import atomic_path
from unoise_monai.attribution.registry import method_names
from unoise_monai.checks import check_choice
from unoise_monai.data.cases import CohortCase, scrub
from unoise_monai.handlers.savers import QUANTITIES
from unoise_monai.inference.memory import default_budget
from unoise_monai.inference.precision import PRECISIONS
from unoise_monai.runs.records import claiming

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
        "reason": " ".join(scrub(reason(error), case).split())[:LONGEST],
    }


def reason(error: BaseException) -> str:
    """What an error means to a person."""
    if isinstance(error, (FutureTimeout, TimeoutError)):
        return "reading took too long: the file or its storage hangs; try it alone, or raise --timeout"
    if isinstance(error, ProcessExpired):
        return f"the reading process ended with code {error.exitcode}: the file is corrupt, or memory ran out"
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


def find_device(name: str = "auto") -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU.

    Raises:
        ValueError: when there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be there, got {name!r} on a machine with {torch.cuda.device_count()} GPUs")
    return device


PACKAGES = ("unoise-monai", "monai", "torch", "numpy", "nibabel", "SimpleITK", "captum")


def about(command: str, device: torch.device | None) -> dict[str, Any]:
    """What ``run.json`` says besides the settings; without a device, workers have their own."""
    name = platform.machine() if device is None or device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "command": command,
        "device": "that of each worker, see cohort.csv" if device is None else f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def software() -> str:
    """The versions that a case's files hang on."""
    # Without the local part: builds for other machines are the same software.
    return ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES[:3])


RUN_FILE = "run.json"
METHODS = tuple(name for name in method_names() if name != "voxelwise_mean")
"""Those that explain all that is segmented; the mean of voxels' maps is of a region."""


class OtherSettings(ValueError):
    """The output was made with other settings than those asked for."""


@dataclass(frozen=True)
class Settings:
    """All that a case's files hang on, apart from the case and the machine.

    Args:
        bundle: its name.
        bundle_version: as its metadata says.
        weights_sha256: of the weights' file.
        config_sha256: of the configuration that networks and preprocessing come from.
        software: versions of what makes the files.
        number_format: that the precision means on the device.
        quantity: what is written of the importance, one of `QUANTITIES`.
        methods: attribution methods whose maps are written, too.
        images: whether pictures are written.
        fast: on a grid `FAST` times as coarse.
        precision: see `resolve_precision`.
        anonymised: whether cases have hashes for names.

    Raises:
        ValueError: when a quantity, a method or a precision is unknown.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    config_sha256: str
    software: str
    number_format: str = "auto"
    quantity: str = "importance"
    methods: tuple[str, ...] = ()
    images: bool = True
    fast: bool = False
    precision: str = "auto"
    anonymised: bool = False

    def __post_init__(self) -> None:
        check_choice("quantity", self.quantity, tuple(QUANTITIES))
        check_choice("precision", self.precision, PRECISIONS)
        for method in self.methods:
            check_choice("method", method, METHODS)

    @property
    def digest(self) -> str:
        """Differs where anything differs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def claim_output(output: Path, settings: Settings, about: dict[str, Any], overwrite: bool = False) -> None:
    """Write ``run.json`` into a new output; check that an old one was made with the same settings.

    Args:
        output: the folder.
        settings: of this run.
        about: what else ``run.json`` says, such as versions, command and device.
        overwrite: take the output over although its settings differ; cases made with them are done again.

    Raises:
        OtherSettings: when they differ; it names what and both values.
    """
    path = output / RUN_FILE
    now = json.loads(json.dumps(asdict(settings)))
    with claiming(output):
        before = read_run(output).get("settings", {}) if path.is_file() else None
        differing = [name for name in now if before is not None and before.get(name) != now[name]]
        if differing and not overwrite:
            told = "; ".join(f"{name} was {(before or {}).get(name)!r}, now {now[name]!r}" for name in differing)
            raise OtherSettings(
                f"{output} holds results of other settings: {told}. Choose another output, or --overwrite (without "
                "--part)"
            )
        if differing or before is None:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({**about, "settings": now}, indent=1) + "\n")


def read_run(output: Path) -> dict[str, Any]:
    """What ``run.json`` of an output says.

    Raises:
        OtherSettings: when it is not JSON.
    """
    try:
        return dict(json.loads((output / RUN_FILE).read_text()))
    except ValueError as error:
        raise OtherSettings(f"{output / RUN_FILE} must be JSON as a run writes it: {error}") from error
