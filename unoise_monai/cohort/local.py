"""Runs cases on this machine: the next is read and the last one saved while the network works on one."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pebble import ProcessPool
from torch import set_num_threads

from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.explain import CohortExplainer, Explained
from unoise_monai.cohort.faults import check_output_fault, failure
from unoise_monai.cohort.load import Loaded, load
from unoise_monai.cohort.save import CaseWriter
from unoise_monai.data import SegmentationTask

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
