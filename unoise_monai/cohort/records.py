"""What is known of every case: written last of its files, so that a record says that all of them are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from unoise_monai.atomic import atomic_path
from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.lock import STATE
from unoise_monai.data.headers import read_header
from unoise_monai.data.validation import CaseError

CHUNK = 1 << 20
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

    A record is a dictionary with ``case``, ``status`` (``"done"`` or ``"failed"``), ``settings`` (a digest) and, of a
    case that is done, ``source`` (size and SHA-256 of what was read), ``files`` (those of each file) and ``figures``.

    Args:
        output: the folder of the whole output.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / STATE / "records"

    def read(self, name: str) -> dict[str, Any] | None:
        """The record of a case, None where there is none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def all(self) -> list[dict[str, Any]]:
        """Every record, by case name."""
        # A name may hold characters that glob takes for patterns, and the folder temporary files that begin with a dot.
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        return [json.loads((self.folder / name).read_text()) for name in names if not name.startswith(".")]

    def write(self, record: dict[str, Any]) -> None:
        """Keep a record; that of a case whose files are all written."""
        with atomic_path(self.folder / f"{record['case']}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def forget(self, name: str) -> None:
        """Remove a case's record, then the files that it names: what is written anew is not done until it is whole."""
        record = self.read(name)
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        for file in (record or {}).get("files", {}):
            (self.output / name / file).unlink(missing_ok=True)

    def state(self, case: CohortCase, digest: str) -> State:
        """Whether a case's files are all there, as they were written, with the same settings, from the same input.

        An input that is gone says nothing against results that are there.
        """
        record = self.read(case.name)
        if record is None or record["status"] != "done" or record["settings"] != digest:
            return State.MISSING
        files = {self.output / case.name / name: known for name, known in record["files"].items()}
        if not all(path.is_file() and fingerprint([path]) == known for path, known in files.items()):
            return State.MISSING
        inputs = inputs_of(case)
        there = bool(inputs) and all(path.is_file() for path in inputs)
        return State.OTHER if there and fingerprint(inputs) != record["source"] else State.DONE

    def sweep(self, names: Iterable[str]) -> None:
        """Remove the temporary files that a killed run has left in the folders of these cases and of the records."""
        for folder in (self.output, self.folder, *(self.output / name for name in names)):
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.is_file() and _is_temporary(path.name):
                        path.unlink(missing_ok=True)


def inputs_of(case: CohortCase) -> list[Path]:
    """All the files that a case is read from, with the voxels that lie beside their headers."""
    files = [*case.files, *(path for path in (case.label, case.organs) if path is not None)]
    return files if case.series else list(dict.fromkeys(each for path in files for each in (path, _voxels(path))))


def fingerprint(paths: Iterable[Path]) -> dict[str, Any]:
    """Size in bytes and SHA-256 of the contents of files, one after the other."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _voxels(path: Path) -> Path:
    """The file that a header says holds the voxels; of one that is not to be read, itself."""
    try:
        return read_header(path).data if path.suffix.lower() in DETACHED else path
    except (CaseError, OSError):
        return path


def _is_temporary(name: str) -> bool:
    """Whether a file is one of `atomic_path`: a dot, 32 hexadecimal digits, suffixes."""
    stem = name[1:33]
    return name.startswith(".") and len(stem) == 32 and all(letter in "0123456789abcdef" for letter in stem)
