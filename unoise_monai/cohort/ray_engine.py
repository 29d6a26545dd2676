"""Runs cases as Ray tasks, on one machine or many; the files are those of a local run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from unoise_monai.cohort.bundle import load_bundle
from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.device import find_device
from unoise_monai.cohort.explain import CohortExplainer
from unoise_monai.cohort.faults import check_output_fault, failure
from unoise_monai.cohort.load import load
from unoise_monai.cohort.records import Records, State
from unoise_monai.cohort.save import CaseWriter
from unoise_monai.cohort.settings import Settings

RETRIES = 3
"""How often a case is begun again whose worker, or its whole machine, has died."""
DIED = 70


@dataclass(frozen=True)
class Work:
    """What a worker has to know, whatever the case; paths are on storage that all machines share."""

    bundle: Path
    weights: Path | None
    trusted: bool
    settings: Settings
    output: Path
    device: str
    memory_gb: float | None
    timeout: float


class RayEngine:
    """An engine of `explain_cohort`.

    Args:
        work: what each worker does.
        address: of the cluster; ``"auto"`` finds a running one, None starts one on this machine.
        gpus: share of a GPU that a worker takes; 0.5 puts two on each.
        cpus: cores that a worker takes.

    Raises:
        ValueError: when Ray is not installed, or a share is below 0.
    """

    def __init__(self, work: Work, address: str | None = None, gpus: float = 0.0, cpus: float = 1.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--engine ray needs Ray, which is not here: pip install 'unoise-monai[ray]'") from error
        if gpus < 0 or cpus < 0:
            raise ValueError(f"shares of a worker must be at least 0, got {gpus} GPUs and {cpus} CPUs")
        self.ray, self.work, self.address, self.gpus, self.cpus = ray, work, address, gpus, cpus

    def __call__(self, cases: Sequence[CohortCase], note: Callable[[dict[str, Any]], None]) -> None:
        """Run the cases; ``note`` is told each record as it comes.

        Raises:
            OutputFault: when the output cannot be written.
        """
        ray = self.ray
        mine = not ray.is_initialized()
        if mine:
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="warning")
        try:
            task = ray.remote(explain_case).options(
                num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES, retry_exceptions=False
            )
            work = ray.put(self.work)
            waiting = {task.remote(work, case): case for case in cases}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                note(self._record(done, waiting.pop(done)))
        finally:
            if mine:
                ray.shutdown()

    def _record(self, done: Any, case: CohortCase) -> dict[str, Any]:
        try:
            return dict(self.ray.get(done))
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        # The worker died of this case as often as it was begun.
        except self.ray.exceptions.RayError as error:
            record = failure(case, self.work.settings.digest, "load", RuntimeError(f"its worker died: {error}"))
            Records(self.work.output).write(record)
            return record


def explain_case(work: Work, case: CohortCase) -> dict[str, Any]:
    """Read, explain and save one case; the record of what became of it.

    Raises:
        OutputFault: when the output cannot be written.
    """
    explainer, writer = _ready(work)
    if writer.records.state(case, work.settings.digest) is State.DONE:
        # By a worker that died before it could say so.
        return writer.records.read(case.name) or {}
    stage = "load"
    try:
        # A worker that hangs is ended, as if it had crashed.
        watch = threading.Timer(work.timeout, os._exit, (DIED,))
        watch.start()
        try:
            loaded = load(case, explainer.task)
        finally:
            watch.cancel()
        stage = "explain"
        explained = explainer(loaded)
        stage = "save"
        return writer(explained)
    # Whatever ends one case, the others go on; it is in the table of failures.
    except Exception as error:
        if stage == "save":
            check_output_fault(error)
        record = failure(case, work.settings.digest, stage, error)
        writer.records.forget(case.name)
        writer.records.write(record)
        return record


@lru_cache(maxsize=1)
def _ready(work: Work) -> tuple[CohortExplainer, CaseWriter]:
    """Weights are loaded once a worker."""
    device = find_device(work.device)
    bundle = load_bundle(work.bundle, device, work.weights, work.trusted)
    explainer = CohortExplainer(bundle, work.settings, device, work.memory_gb)
    return explainer, CaseWriter(explainer, work.output)
