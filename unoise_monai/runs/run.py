"""A run over cases: what is done stays, what is missing is made."""

import multiprocessing
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from pebble import ProcessPool
from torch import set_num_threads
from tqdm import tqdm

from unoise_monai.bundle import Bundle
from unoise_monai.data.cases import Case
from unoise_monai.runs.explain import CaseExplainer, CaseReader, Job, Loaded, portable
from unoise_monai.runs.records import Records, State, check_output_fault, claimed, failure, failures, output_fault
from unoise_monai.runs.save import CaseWriter, write_tables
from unoise_monai.runs.scoreboard import write_scoreboard
from unoise_monai.runs.settings import Comparison, OtherSettings, Settings, about, claim_output

Record: TypeAlias = dict[str, Any]
Read: TypeAlias = Callable[[Case], Loaded]
Engine: TypeAlias = Callable[[Sequence[Job], Callable[[Record], None]], None]
"""Does jobs, and calls back with each record as it comes."""
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


def part_of(cases: Sequence[Case], part: tuple[int, int] | None) -> list[Case]:
    """Part K of N of the cases: of neighbours, often alike, every N-th; a `ValueError` for a K that is not 1 to N."""
    if part is None:
        return list(cases)
    k, n = part
    if not 1 <= k <= n:
        raise ValueError(f"part must be K/N with K from 1 to N, got {k}/{n}")
    return list(cases[k - 1 :: n])


def explain_cases(
    cases: Sequence[Case],
    bundle: Bundle,
    settings: Settings,
    output: str | Path,
    comparison: Comparison | None = None,
    command: str = "",
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    workers: int = 1,
    timeout: float = 900.0,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Summary:
    """Explain what is not done yet, and write the tables of all that is.

    Args:
        cases: of the whole cohort, see `find_cases`.
        bundle: on the device where it is to run.
        settings: that the files depend on.
        output: the folder; one that holds results of these settings is gone on with.
        comparison: further methods, and what is measured of them; results of other options are made again.
        command: for ``run.json``, without paths of patients.
        part: do part K of N only.
        overwrite: do every case again; a run of all parts takes over an output of other settings.
        workers, timeout: see `run_local`.
        quiet: show failures only.
        engine: runs cases elsewhere, as `run_local` does here.

    Raises:
        OutputInUse: when another run writes to the output.
        OtherSettings: when it holds results of other settings, or of other files under a case's name.
        OutputFault: when it cannot be written.
    """
    comparison, output = comparison or Comparison(), Path(output)
    records, device = Records(output), None
    if engine is None:
        explainer, writer = CaseExplainer(bundle, comparison), CaseWriter(bundle, records, settings.digest)
        device = explainer.device

        def engine(jobs: Sequence[Job], note: Callable[[Record], None]) -> None:
            run_local(jobs, explainer, writer, note, workers, timeout)

    try:
        output.mkdir(parents=True, exist_ok=True)
        with claimed(output, part):
            _take(records, settings, about(command, device), part, overwrite, cases)
            jobs = _jobs(cases, part, records, settings, comparison)
            progress = Progress(len(jobs), quiet)
            batches = _batches(jobs, records, cases[0].name if cases else "")
            failed = _run(engine, batches, records, comparison, progress)
    except OSError as error:
        raise output_fault(str(error)) from error
    chosen = len(part_of(cases, part))
    return Summary(chosen, len(jobs) - failed, chosen - len(jobs), failed)


def _take(
    records: Records,
    settings: Settings,
    facts: Mapping[str, Any],
    part: tuple[int, int] | None,
    overwrite: bool,
    cases: Sequence[Case],
) -> None:
    """Make the output this run's: nothing of other settings stays in it, nor what a killed run has half-written."""
    whole = part is None
    claim_output(records.output, settings, dict(facts), overwrite and whole)
    names = {case.name for case in cases}
    mine = [case.name for case in part_of(cases, part)]
    for record in records.all() if whole else ():
        # A failure of a file that is in the input no more is none.
        failed = record["status"] != "done" and record["case"] not in names
        if failed or record["settings"] != settings.digest:
            records.forget(record["case"])
    for name in mine if overwrite else ():
        records.forget(name)
    records.sweep(mine, whole)


def _jobs(
    cases: Sequence[Case], part: tuple[int, int] | None, records: Records, settings: Settings, comparison: Comparison
) -> list[Job]:
    """What there is to do; the first so many cases of the whole cohort are robust ones."""
    numbers = {case.name: number for number, case in enumerate(cases)}
    jobs, others = [], []
    for case in part_of(cases, part):
        robust = comparison.is_robust(numbers[case.name])
        digests = comparison.digests(robust)
        state = records.state(case, settings.digest)
        if state is State.OTHER:
            others.append(case.name)
        elif state is State.MISSING:
            jobs.append(Job(case, methods=digests, robust=robust))
        elif missing := records.missing_methods(case.name, digests):
            jobs.append(Job(case, True, {name: digests[name] for name in missing}, robust))
    if others:
        raise OtherSettings(
            f"{records.output} holds results of other files than those that are now called {', '.join(others[:3])}"
            f"{' and more' if others[3:] else ''}. Choose another output, remove these folders, or --overwrite"
        )
    return jobs


def _run(
    run: Engine, batches: Iterable[Sequence[Job]], records: Records, comparison: Comparison, progress: "Progress"
) -> int:
    """Run jobs and write the tables, also when the run ends early; how many have failed."""
    failed = 0

    def note(record: Record) -> None:
        nonlocal failed
        failed += bool(failures(record))
        progress(record)
        if progress.done % EVERY == 0:
            write_tables(records)

    try:
        for batch in batches:
            run(batch, note)
    except BaseException:
        # What ended the run is what there is to report, not that the tables could not be written, either.
        with suppress(OSError):
            write_tables(records)
        raise
    finally:
        progress.close()
    write_tables(records)
    if comparison.scorer is not None and (results := method_results(records, comparison)):
        write_scoreboard(results, records.output)
    return failed


def _batches(jobs: Sequence[Job], records: Records, first: str) -> Iterator[Sequence[Job]]:
    """The first case by itself where it is a robust one: its passes decide which methods are measured on the others."""
    alone = [job for job in jobs if job.robust and job.case.name == first]
    if alone:
        yield alone
    results = (records.read(first) or {}).get("methods", {})
    counted = {name: result for name, result in results.items() if "forward_passes" in result}
    passes = {name: result["forward_passes"] + result["backward_passes"] for name, result in counted.items()}
    rest = [replace(job, passes=passes) for job in jobs if job not in alone]
    if rest:
        yield rest


def method_results(records: Records, comparison: Comparison) -> list[Record]:
    """What the scoreboard is made of: the result of each method of a comparison on each case that was begun."""
    results = []
    for record in records.all():
        failed = {"failed": record["reason"]} if record["status"] == "failed" else {}
        for method in comparison.methods if record["status"] in ("done", "failed") else ():
            result = failed or record["methods"].get(method)
            if result:
                results.append({"case": record["case"], "method": method, **result})
    return results


def run_local(
    jobs: Sequence[Job],
    explainer: CaseExplainer,
    writer: CaseWriter,
    progress: Callable[[Record], None],
    workers: int = 1,
    timeout: float = 900.0,
    read: Read | None = None,
) -> None:
    """Do jobs on this machine: the next case is read and the last one saved while the network works on one.

    A job that fails leaves its record and no more.

    Args:
        jobs, explainer, writer: what to do, what runs the network, and what writes the files.
        progress: called with each record.
        workers: processes that read ahead; with 0, this one reads.
        timeout: seconds that reading a case may take; what hangs is ended.
        read: reads a case, in another process; a `CaseReader` of the bundle by default.

    Raises:
        OutputFault: when the output cannot be written.
    """
    read = CaseReader(explainer.bundle) if read is None else read
    with ThreadPoolExecutor(1, thread_name_prefix="save") as saver:
        saving: deque[tuple[Job, Future[Record]]] = deque()

        def settle(most: int) -> None:
            """Wait until at most so many are being saved: each holds a volume."""
            while len(saving) > most:
                job, future = saving.popleft()
                try:
                    record = future.result()
                # Whatever ends one case, the others go on; it is in the table of failures.
                except Exception as error:
                    check_output_fault(error)
                    record = fail(job, writer.records, writer.digest, "save", error)
                progress(record)

        for job, loaded in read_ahead(jobs, read, workers, timeout):
            if isinstance(loaded, BaseException):
                settle(0)
                progress(fail(job, writer.records, writer.digest, "load", loaded))
                continue
            try:
                explained = explainer(loaded, job)
            # Whatever ends one case, the others go on; it is in the table of failures.
            except Exception as error:
                settle(0)
                progress(fail(job, writer.records, writer.digest, "explain", error))
                continue
            saving.append((job, saver.submit(writer, explained)))
            settle(1)
        settle(0)


def fail(job: Job, records: Records, digest: str, stage: str, error: BaseException) -> Record:
    """Write the record of a case that failed; of one whose methods alone were missing, that they failed.

    Raises:
        OutputFault: when the output cannot be written.
    """
    record = failure(job.case, digest, stage, error)
    known = records.read(job.case.name) if job.done else None
    try:
        if known is not None and known["status"] == "done":
            results = {name: {"settings": digest, "failed": record["reason"]} for name, digest in job.methods.items()}
            record = {**known, "methods": {**known.get("methods", {}), **results}}
        else:
            records.forget(job.case.name)
        records.write(record)
    except OSError as fault:
        check_output_fault(fault)
        raise
    return record


def read_ahead(
    jobs: Sequence[Job], read: Read, workers: int, timeout: float
) -> Iterator[tuple[Job, Loaded | BaseException]]:
    """Cases in their order, read by other processes, as many ahead as there are; what a case failed with in its place.

    A process that a file crashes, or that is ended because a file hangs it, is replaced. With no workers, cases are
    read in this process, which such a file would end or hang.
    """
    if not workers:
        for job in jobs:
            try:
                yield job, read(job.case)
            # Whatever ends one case, the others go on; it is in the table of failures.
            except Exception as error:
                yield job, error
        return
    spawn = multiprocessing.get_context("spawn")
    left, again = deque(jobs), False
    while left:
        with ProcessPool(workers, initializer=_start_reader, initargs=[read], context=spawn) as pool:
            waiting: deque[Any] = deque()
            try:
                while left:
                    # Of a pool that is broken: what waits for it fails, or nothing does.
                    with suppress(RuntimeError):
                        while len(waiting) < min(len(left), 1 if again else workers + 1):
                            waiting.append(pool.schedule(_read, args=(left[len(waiting)].case,), timeout=timeout))
                    future: Any = waiting.popleft() if waiting else None
                    fault = future.exception() if future else BrokenProcessPool()
                    # A process that ends before the pool knows which case it has breaks the pool, whoever else is read
                    # in it: a new one tries again, with the first case alone.
                    broken = isinstance(fault, BrokenProcessPool)
                    again = broken and not again
                    if again:
                        break
                    # Made by our own process.
                    yield left.popleft(), pickle.loads(future.result()) if fault is None else fault  # noqa: S301
                    if broken:
                        break
            finally:
                pool.stop()


_reader: Read


def _start_reader(read: Read) -> None:
    """Make a process a reader, which keeps what it builds from one case to the next."""
    global _reader
    _reader = read
    # Reading shares the machine with a network that is at work: a thread each.
    set_num_threads(1)


def _read(case: Case) -> bytes:
    """A case, pickled here: PyTorch would lend its memory, which is gone when the next case ends this process."""
    return pickle.dumps(portable(_reader(case)), pickle.HIGHEST_PROTOCOL)


class Progress:
    """Shows cases, rate and time left on standard error, of so many cases in all; only failures where ``quiet``."""

    def __init__(self, total: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.total, self.quiet, self.stream = total, quiet, sys.stderr if stream is None else stream
        self.done, self.start = 0, time.monotonic()
        bar = not quiet and total > 0 and self.stream.isatty()
        self.bar = tqdm(total=total, unit="case", file=self.stream, dynamic_ncols=True) if bar else None

    def __call__(self, record: dict[str, Any]) -> None:
        """A case is done, or failed."""
        self.done += 1
        failed = bool(failures(record))
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
        if reasons := failures(record):
            return head + "; ".join(f"failed at {stage}: {reason}" for stage, reason in reasons)
        parts = [f"{record['seconds']:.1f} s"]
        if "dice" in record["numbers"]:
            parts.append(f"Dice {record['numbers']['dice']:.3f}")
        if record["note"]:
            parts.append(record["note"])
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        return f"{head}{', '.join(parts)}; {rate:.2f} cases/s, {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
