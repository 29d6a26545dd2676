"""A cohort from its input to its tables: what is done stays, what is missing is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from unoise_monai.cohort.bundle import LoadedBundle
from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.explain import CohortExplainer
from unoise_monai.cohort.faults import OutputFault
from unoise_monai.cohort.local import run_local
from unoise_monai.cohort.lock import claimed
from unoise_monai.cohort.progress import Progress
from unoise_monai.cohort.records import Records, State
from unoise_monai.cohort.save import CaseWriter
from unoise_monai.cohort.settings import OtherSettings, Settings, claim_output
from unoise_monai.cohort.tables import write_tables
from unoise_monai.cohort.versions import about

Engine: TypeAlias = Callable[[Sequence[CohortCase], Callable[[dict[str, Any]], None]], None]
"""Runs cases and tells each record as it comes."""
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
    engine: Engine | None = None,
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
        overwrite: do every case again; a run of all parts takes over an output of other settings.
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
    records = Records(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with claimed(output, part):
            _take(records, settings, about(command, None if engine else device), part, overwrite, cases)
            missing = _missing(chosen, records, settings, overwrite)
            progress = Progress(len(missing), quiet)
            run = engine or _local(bundle, settings, output, device, memory_gb, workers, timeout)
            failed = _run(run, missing, records, progress)
    except OSError as error:
        raise OutputFault(
            f"output must be writable, got: {error}. What is done is kept; start again to go on"
        ) from error
    return Summary(len(chosen), len(missing) - failed, len(chosen) - len(missing), failed)


def _take(
    records: Records,
    settings: Settings,
    told: dict[str, Any],
    part: tuple[int, int] | None,
    overwrite: bool,
    cases: Sequence[CohortCase],
) -> None:
    """Make the output this run's: nothing of other settings stays in it, nor what a killed run has half-written."""
    whole = part is None
    claim_output(records.output, settings, told, overwrite and whole)
    names = {case.name for case in cases}
    for record in records.all() if whole else ():
        # A failure of a file that is in the input no more is none.
        failed = record["status"] != "done" and record["case"] not in names
        if failed or record["settings"] != settings.digest:
            records.forget(record["case"])
    records.sweep((case.name for case in part_of(cases, part)), whole)


def _missing(cases: Sequence[CohortCase], records: Records, settings: Settings, overwrite: bool) -> list[CohortCase]:
    """What there is to do."""
    if overwrite:
        return list(cases)
    states = {case.name: records.state(case, settings.digest) for case in cases}
    others = [name for name, state in states.items() if state is State.OTHER]
    if others:
        raise OtherSettings(
            f"{records.output} holds results of other files than those that are now called {', '.join(others[:3])}"
            f"{' and more' if others[3:] else ''}. Choose another output, remove these folders, or --overwrite"
        )
    return [case for case in cases if states[case.name] is State.MISSING]


def _run(run: Engine, missing: Sequence[CohortCase], records: Records, progress: Progress) -> int:
    """Run cases and write the tables, also when the run ends early; how many have failed."""
    failed = 0

    def note(record: dict[str, Any]) -> None:
        nonlocal failed
        failed += record["status"] == "failed"
        progress(record)
        if progress.done % EVERY == 0:
            write_tables(records)

    try:
        if missing:
            run(missing, note)
    except BaseException:
        # What ended the run is what there is to tell, not that the tables could not be written, either.
        with suppress(OSError):
            write_tables(records)
        raise
    finally:
        progress.close()
    write_tables(records)
    return failed


def _local(
    bundle: LoadedBundle,
    settings: Settings,
    output: Path,
    device: torch.device,
    memory_gb: float | None,
    workers: int,
    timeout: float,
) -> Engine:
    """Runs cases on this machine."""

    def run(cases: Sequence[CohortCase], note: Callable[[dict[str, Any]], None]) -> None:
        explainer = CohortExplainer(bundle, settings, device, memory_gb)
        run_local(cases, explainer, CaseWriter(explainer, output), note, workers, timeout)

    return run
