"""A run over cases: what is done stays, what is missing is made."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import torch
from pebble import ProcessPool
from torch import set_num_threads
from tqdm import tqdm

from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.data.task import SegmentationTask
from unoise_monai.runs.explain import CohortExplainer, Explained
from unoise_monai.runs.load import Loaded, load
from unoise_monai.runs.records import Records, State, claimed
from unoise_monai.runs.save import CaseWriter
from unoise_monai.runs.settings import (
    OtherSettings,
    OutputFault,
    Settings,
    about,
    check_output_fault,
    claim_output,
    failure,
)
from unoise_monai.runs.tables import write_tables


class Progress:
    """Tells cases, rate and time left, on standard error.

    Args:
        total: how many cases there are to do.
        quiet: tell failures only.
        stream: where to.
    """

    def __init__(self, total: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.total, self.quiet, self.stream = total, quiet, sys.stderr if stream is None else stream
        self.done, self.start = 0, time.monotonic()
        bar = not quiet and total > 0 and self.stream.isatty()
        self.bar = tqdm(total=total, unit="case", file=self.stream, dynamic_ncols=True) if bar else None

    def __call__(self, record: dict[str, Any]) -> None:
        """A case is done, or failed."""
        self.done += 1
        failed = record["status"] == "failed"
        if self.bar is not None:
            self.bar.update()
        if self.bar is not None and not failed:
            self.bar.set_postfix_str(record["case"])
        elif failed or not self.quiet:
            self.tell(self._line(record))

    def tell(self, line: str) -> None:
        """Write a line, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self, record: dict[str, Any]) -> str:
        head = f"[{self.done}/{self.total}] {record['case']}: "
        if record["status"] == "failed":
            return f"{head}failed at {record['stage']}: {record['reason']}"
        told = [f"{record['seconds']:.1f} s"]
        if "dice" in record["figures"]:
            told.append(f"Dice {record['figures']['dice']:.3f}")
        if record["note"]:
            told.append(record["note"])
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        return f"{head}{', '.join(told)}; {rate:.2f} cases/s, {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


Record = dict[str, Any]


def run_local(
    cases: Sequence[CohortCase],
    explainer: CohortExplainer,
    writer: CaseWriter,
    progress: Callable[[Record], None],
    workers: int = 1,
    timeout: float = 900.0,
    read: Callable[[CohortCase, SegmentationTask], Loaded] = load,
) -> None:
    """Explain cases one after the other; one that fails leaves its record and no more.

    Args:
        cases: to do.
        explainer: runs the network.
        writer: writes the files.
        progress: is told each record.
        workers: processes that read ahead; with 0, this one reads.
        timeout: seconds that reading a case may take; what hangs is ended.
        read: reads a case, in another process.

    Raises:
        OutputFault: when the output cannot be written.
    """
    digest = explainer.settings.digest
    with ThreadPoolExecutor(1, thread_name_prefix="save") as saver:
        saving: deque[tuple[CohortCase, Future[Record]]] = deque()

        def settle(most: int) -> None:
            """Wait until at most so many are being saved: each holds a volume."""
            while len(saving) > most:
                case, future = saving.popleft()
                try:
                    record = future.result()
                # Whatever ends one case, the others go on; it is in the table of failures.
                except Exception as error:
                    check_output_fault(error)
                    record = fail(case, "save", error)
                progress(record)

        def fail(case: CohortCase, stage: str, error: BaseException) -> Record:
            record = failure(case, digest, stage, error)
            try:
                writer.records.forget(case.name)
                writer.records.write(record)
            except OSError as fault:
                check_output_fault(fault)
                raise
            return record

        for case, loaded in read_ahead(cases, explainer.task, workers, timeout, read):
            if isinstance(loaded, BaseException):
                settle(0)
                progress(fail(case, "load", loaded))
                continue
            try:
                explained: Explained = explainer(loaded)
            # Whatever ends one case, the others go on; it is in the table of failures.
            except Exception as error:
                settle(0)
                progress(fail(case, "explain", error))
                continue
            saving.append((case, saver.submit(writer, explained)))
            settle(1)
        settle(0)


def read_ahead(
    cases: Sequence[CohortCase],
    task: SegmentationTask,
    workers: int,
    timeout: float,
    read: Callable[[CohortCase, SegmentationTask], Loaded],
) -> Iterator[tuple[CohortCase, Loaded | BaseException]]:
    """Cases in their order, read by other processes, as many ahead as there are; what a case failed with in its place.

    A process that a file crashes, or that is ended because a file hangs it, is replaced. With no workers, cases are
    read in this process, which such a file would end or hang.
    """
    if not workers:
        for case in cases:
            try:
                yield case, read(case, task)
            # Whatever ends one case, the others go on; it is in the table of failures.
            except Exception as error:
                yield case, error
        return
    # Reading shares the machine with a network that is at work: a thread each.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPool(workers, initializer=set_num_threads, initargs=[1], context=spawn) as pool:
        waiting: deque[tuple[CohortCase, Any]] = deque()
        left = deque(cases)
        try:
            while left or waiting:
                while left and len(waiting) <= workers:
                    waiting.append((left[0], pool.schedule(read, args=(left.popleft(), task), timeout=timeout)))
                case, future = waiting.popleft()
                fault = future.exception()
                yield case, future.result() if fault is None else fault
        finally:
            pool.stop()


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
