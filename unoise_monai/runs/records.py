"""What an output holds: one run at a time, a record of every case, written last, and what ended a case."""

import errno
import json
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pebble.common import ProcessExpired

from unoise_monai.atomic import atomic_path
from unoise_monai.bundle import fingerprint
from unoise_monai.data.cases import STATE, Case, scrub
from unoise_monai.data.headers import CaseError, read_header
from unoise_monai.handlers.evaluator import cause_of
from unoise_monai.inference.memory import is_out_of_memory

logger = logging.getLogger(__name__)

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
                    _taken(lock, output).release()
            stack.callback(_taken(state / f"{mine}.run", output).release)
            owner = state / f"{mine}.owner"
            owner.write_text(json.dumps({"machine": socket.gethostname(), "process": os.getpid()}), encoding="utf-8")
            stack.callback(owner.unlink, missing_ok=True)
        yield


def claiming(output: Path) -> FileLock:
    """Holds, for moments, what decides whose an output is and of which settings."""
    return FileLock(output / STATE / "claim.lock", timeout=SECONDS)


def tables_locked(output: Path) -> FileLock:
    """Holds the tables of an output for moments: whoever comes last has seen every record."""
    return FileLock(output / STATE / "tables.lock", timeout=SECONDS)


def _taken(lock: Path, output: Path) -> FileLock:
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        owner = lock.with_suffix(".owner")
        who = json.loads(owner.read_text(encoding="utf-8")) if owner.is_file() else {}
        raise OutputInUse(
            f"{output} must be written by one run at a time, and process {who.get('process', 'unknown')} on "
            f"{who.get('machine', 'an unknown machine')} is at it ({lock.stem})"
        ) from error
    return held


ORGAN_NAMES = "organs.json"
"""Beside organ maps, names their labels: ``{"1": "liver", ...}``."""
DETACHED = (".hdr", ".nhdr", ".mhd")


class State(Enum):
    """What an output holds of a case."""

    MISSING = "missing"
    """Nothing, or not all, or made with other settings."""
    DONE = "done"
    OTHER = "other"
    """Results of another input: of another patient whose file has the same name, or of a file that has changed."""


class Records:
    """The records of an output, ``OUTPUT/.unoise/records/<case>.json``.

    Everything that is known of an output is in them: tables and the report are made from them alone. A record has

    - ``case`` (its name), ``status`` (``"begun"``, ``"done"`` or ``"failed"``), ``settings`` (a digest);
    - ``files``: names in the case's folder, ``<case>_<quantity or method>.nii.gz``, ``<case>_seg.nii.gz`` and pictures,
      to None while they are being written, to size and SHA-256 of what was written (``bytes``, ``sha256``) after that;
    - failed: ``stage``, ``reason`` and ``shown``, the input as a person may see it;
    - done: ``shown``; ``source``, size and SHA-256 of what was read; ``numbers``, key to number (``dice``,
      ``dice_<class>``, ``volume_ml_<class>``, ``importance_mean``, ...); ``organs``, a dictionary each (``organ``,
      ``importance_share``, ...); ``voxels`` and ``spacing_mm``, three numbers each; ``device``, ``note``, ``seconds``
      and ``peak_memory_gb``; ``methods``, by name ``settings`` (a digest), ``files`` and, where they were scored,
      ``scores``, ``curves`` and costs, or why it ``failed``.

    Args:
        output: the folder of the whole output.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / STATE / "records"

    def read(self, name: str) -> dict[str, Any] | None:
        """The record of a case, None where there is none, or none of this case that can be read."""
        try:
            record = dict(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            record = {}
        if record.get("case") != name:
            logger.warning("%s: its record is damaged, and counts as none", name)
            return None
        return record

    def all(self) -> list[dict[str, Any]]:
        """Every record, by case name."""
        # A name may hold characters that glob takes for patterns, and the folder temporary files that begin with a dot.
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        found = [self.read(name.removesuffix(".json")) for name in names if not name.startswith(".")]
        return [record for record in found if record is not None]

    def begin(self, name: str, digest: str, files: Iterable[str], keep: Iterable[str] = ()) -> None:
        """Remove what there is of a case but ``keep``, and say which ``files`` will be written, so that none is left.

        ``digest`` is that of the run's settings.
        """
        keep = list(keep)
        self.forget(name, keep)
        self.write({"case": name, "status": "begun", "settings": digest, "files": dict.fromkeys([*keep, *files])})

    def write(self, record: dict[str, Any]) -> None:
        """Keep a record; that of a case that is done comes after its files."""
        with atomic_path(self.folder / f"{record['case']}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def forget(self, name: str, keep: Iterable[str] = ()) -> None:
        """Remove the files that a case's record names, then the record, and the case's folder where nothing is left."""
        record = self.read(name)
        for file in set((record or {}).get("files", {})) - set(keep):
            (self.output / name / file).unlink(missing_ok=True)
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        folder = self.output / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def state(self, case: Case, digest: str) -> State:
        """Whether a case's files are all there, as they were written, with the same settings, from the same input.

        An input that is gone, or cannot be read, says nothing against results that are there.
        """
        record = self.read(case.name)
        if record is None or record["status"] != "done" or record["settings"] != digest:
            return State.MISSING
        files = {self.output / case.name / name: known for name, known in record["files"].items()}
        if not all(path.is_file() and fingerprint([path]) == known for path, known in files.items()):
            return State.MISSING
        try:
            now = fingerprint(inputs_of(case)) if case.files else record["source"]
        except OSError:
            return State.DONE
        return State.DONE if now == record["source"] else State.OTHER

    def missing_methods(self, name: str, digests: Mapping[str, str]) -> tuple[str, ...]:
        """Of a case that is done, the methods without a result of these digests, or that failed."""
        known = (self.read(name) or {}).get("methods", {})
        return tuple(
            method
            for method, digest in digests.items()
            if known.get(method, {}).get("settings") != digest or "failed" in known[method]
        )

    def sweep(self, names: Iterable[str], whole: bool) -> None:
        """Remove the temporary files that a killed run has left in the folders of these cases.

        Of the ``whole`` output: in those of the tables and the records, too, to which no other run may be writing then.
        """
        shared = (self.output, self.folder) if whole else ()
        for folder in (*shared, *(self.output / name for name in names)):
            if folder.is_dir():
                for path in folder.iterdir():
                    # As `atomic_path` names them.
                    if path.is_file() and re.match(r"\.[0-9a-f]{32}", path.name):
                        path.unlink(missing_ok=True)


def failures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Stage and reason of all that failed of a case: the case itself, or single methods; empty where nothing did."""
    if record["status"] == "failed":
        return [(record["stage"], record["reason"])]
    methods = record.get("methods", {})
    return [(name, result["failed"]) for name, result in methods.items() if "failed" in result]


def inputs_of(case: Case) -> list[Path]:
    """All the files that a case is read from, with the voxels that lie beside their headers."""
    files = [*case.files, *(path for path in (case.label, case.organs) if path is not None)]
    if case.organs is not None and (names := case.organs.parent / ORGAN_NAMES).is_file():
        files.append(names)
    return files if case.series else list(dict.fromkeys(each for path in files for each in (path, _voxels(path))))


def _voxels(path: Path) -> Path:
    """The file that a header says holds the voxels; of one that is not to be read, itself."""
    try:
        return read_header(path).data if path.suffix.lower() in DETACHED else path
    except (CaseError, OSError):
        return path


OUTPUT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}
LONGEST = 500


class OutputFault(RuntimeError):
    """The output cannot be written: no other case could be, either."""


def failure(case: Case, digest: str, stage: str, error: BaseException) -> dict[str, Any]:
    """The record of a case that failed in a stage, ``"load"``, ``"explain"`` or ``"save"``; it keeps no path of it."""
    return {
        "case": case.name,
        "status": "failed",
        "settings": digest,
        "shown": case.shown,
        "stage": stage,
        "reason": reason_for(case, error),
    }


def reason_for(case: Case, error: BaseException, folders: Sequence[str | Path] = ()) -> str:
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
        raise output_fault(os.strerror(error.errno)) from error


def output_fault(got: str) -> OutputFault:
    """The error of an output that cannot be written."""
    return OutputFault(f"output must be writable, got: {got}. What is done is kept; start again to go on")
