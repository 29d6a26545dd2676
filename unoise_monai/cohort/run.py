"""A cohort from its input to its tables: what is done stays, what is missing is made."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unoise_monai.cohort.bundle import LoadedBundle
from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.explain import CohortExplainer
from unoise_monai.cohort.local import run_local
from unoise_monai.cohort.lock import claimed
from unoise_monai.cohort.progress import Progress
from unoise_monai.cohort.records import Records, State
from unoise_monai.cohort.save import CaseWriter
from unoise_monai.cohort.settings import OtherSettings, Settings, claim_output
from unoise_monai.cohort.tables import write_tables

PACKAGES = ("unoise-monai", "monai", "torch", "numpy", "nibabel", "SimpleITK", "captum")
EVERY = 25
"""After so many cases the tables are written, so that there is something to look at."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    cases: int
    done: int
    """By this run."""
    kept: int
    """Done before."""
    failed: int


def part_of(cases: Sequence[CohortCase], part: tuple[int, int] | None) -> list[CohortCase]:
    """Part K of N of the cases: of neighbours, which are often alike, every N-th.

    Raises:
        ValueError: when K is not from 1 to N.
    """
    if part is None:
        return list(cases)
    k, n = part
    if not 1 <= k <= n:
        raise ValueError(f"part must be K/N with K from 1 to N, got {k}/{n}")
    return list(cases[k - 1 :: n])


def explain_cohort(
    cases: Sequence[CohortCase],
    bundle: LoadedBundle,
    settings: Settings,
    output: Path,
    device: torch.device,
    command: str = "",
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    workers: int = 1,
    timeout: float = 900.0,
    memory_gb: float | None = None,
    quiet: bool = False,
    engine: Callable[[Sequence[CohortCase], Callable[[dict[str, Any]], None]], None] | None = None,
) -> Summary:
    """Explain what is not done yet, and write the tables of all that is.

    Args:
        cases: of the whole cohort, see `find_cohort`.
        bundle: on ``device``.
        settings: what the files hang on.
        output: the folder; one that holds results of these settings is gone on with.
        device: where to run.
        command: for ``run.json``, without paths of patients.
        part: do part K of N only.
        overwrite: take over an output of other settings, and do every case again.
        workers: processes that read ahead, see `run_local`.
        timeout: seconds that reading a case may take.
        memory_gb: see `TiledInferer`.
        quiet: tell failures only.
        engine: runs cases elsewhere, as `run_local` does here.

    Raises:
        OutputInUse: when another run writes to the output.
        OtherSettings: when it holds results of other settings, or of other files under a case's name.
        OutputFault: when it cannot be written.
    """
    chosen = part_of(cases, part)
    output.mkdir(parents=True, exist_ok=True)
    records = Records(output)
    with claimed(output, part):
        claim_output(output, settings, about(command, device), overwrite)
        records.sweep(case.name for case in chosen)
        states = {case.name: State.MISSING if overwrite else records.state(case, settings.digest) for case in chosen}
        others = [name for name, state in states.items() if state is State.OTHER]
        if others:
            raise OtherSettings(
                f"{output} holds results of other files than those that are now called {', '.join(others[:3])}"
                f"{' and more' if others[3:] else ''}. Choose another output, remove these folders, or --overwrite"
            )
        missing = [case for case in chosen if states[case.name] is State.MISSING]
        progress = Progress(len(missing), quiet)
        failed = 0

        def note(record: dict[str, Any]) -> None:
            nonlocal failed
            failed += record["status"] == "failed"
            progress(record)
            if progress.done % EVERY == 0:
                write_tables(records)

        try:
            if missing and engine is not None:
                engine(missing, note)
            elif missing:
                explainer = CohortExplainer(bundle, settings, device, memory_gb)
                run_local(missing, explainer, CaseWriter(explainer, output), note, workers, timeout)
        finally:
            progress.close()
            write_tables(records)
    return Summary(len(chosen), len(missing) - failed, len(chosen) - len(missing), failed)


def about(command: str, device: torch.device) -> dict[str, Any]:
    """What ``run.json`` says besides the settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "command": command,
        "device": f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
