"""Runs cases as Ray tasks, on one machine or many; the files are those of a local run."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unoise_monai.bundle import load_bundle
from unoise_monai.runs.explain import CaseExplainer, CaseReader, Job
from unoise_monai.runs.records import OutputFault, Records, State, check_output_fault, reason
from unoise_monai.runs.run import fail
from unoise_monai.runs.save import CaseWriter
from unoise_monai.runs.settings import Comparison, Settings, find_device

RETRIES = 3
"""How often a case is begun again whose worker, or its whole machine, has died."""
DIED = 70


@dataclass(frozen=True)
class Work:
    """What a worker has to know, whatever the case; paths are on storage that all machines share."""

    bundle: Path
    weights: Path | None
    trusted: bool
    changes: Mapping[str, Any]
    overlays: Sequence[str]
    settings: Settings
    comparison: Comparison
    output: Path
    device: str
    timeout: float


class RayEngine:
    """An engine of `explain_cases`.

    Args:
        address: of the cluster; ``"auto"`` finds a running one, None starts one on this machine.
        gpus: share of a GPU that a worker takes; 0.5 puts two on each. By default 1, where the cluster has any and the
            work is not for the CPU.
        cpus: cores that a worker takes.

    Raises:
        ValueError: when Ray is not installed, or a share is below 0.
    """

    def __init__(self, work: Work, address: str | None = None, gpus: float | None = None, cpus: float = 1.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--engine ray needs Ray, which is not here: pip install 'unoise-monai[ray]'") from error
        if (gpus or 0) < 0 or cpus < 0:
            raise ValueError(f"shares of a worker must be at least 0, got {gpus} GPUs and {cpus} CPUs")
        self.ray, self.work, self.address, self.gpus, self.cpus = ray, work, address, gpus, cpus

    def __call__(self, jobs: Sequence[Job], note: Callable[[dict[str, Any]], None]) -> None:
        """Do the jobs; ``note`` is called with each record as it comes.

        Raises:
            OutputFault: when the output cannot be written.
        """
        ray = self.ray
        mine = not ray.is_initialized()
        if mine:
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="warning")
        try:
            gpus = self.gpus
            if gpus is None:
                gpus = float(self.work.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
            task = ray.remote(explain_case).options(
                num_cpus=self.cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=[CannotBegin]
            )
            work = ray.put(self.work)
            waiting = {task.remote(work, job): job for job in jobs}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                note(self._record(done, waiting.pop(done)))
        finally:
            if mine:
                ray.shutdown()

    def _record(self, done: Any, job: Job) -> dict[str, Any]:
        try:
            return dict(self.ray.get(done))
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OutputFault):
                raise error.cause from None
            fault: BaseException = error.cause
        # The worker died of this case as often as it was begun.
        except self.ray.exceptions.RayError as error:
            fault = RuntimeError(f"its worker died: {error}")
        records = Records(self.work.output)
        # By a worker that died before it could report it.
        if found := _finished(records, job, self.work.settings.digest):
            return found
        return fail(job, records, self.work.settings.digest, "load", fault)


class CannotBegin(RuntimeError):
    """A worker cannot load the bundle; another one may."""


def explain_case(work: Work, job: Job) -> dict[str, Any]:
    """Read, explain and save one case; the record of what became of it.

    Raises:
        OutputFault: when the output cannot be written.
        CannotBegin: when the bundle cannot be loaded here.
    """
    try:
        read, explainer, writer = _ready(work)
    # Whatever is wrong with this machine, another may do the case.
    except Exception as error:
        raise CannotBegin(f"a worker cannot load the bundle: {reason(error)}") from error
    # By a worker that died before it could report it.
    if found := _finished(writer.records, job, writer.digest):
        return found
    stage = "load"
    # A worker that hangs is ended, as if it had crashed.
    watch = threading.Timer(work.timeout, os._exit, (DIED,))
    watch.start()
    try:
        try:
            loaded = read(job.case)
        finally:
            watch.cancel()
        stage = "explain"
        explained = explainer(loaded, job)
        stage = "save"
        return writer(explained)
    # Whatever ends one case, the others go on; it is in the table of failures.
    except Exception as error:
        if stage == "save":
            check_output_fault(error)
        return fail(job, writer.records, writer.digest, stage, error)


def _finished(records: Records, job: Job, digest: str) -> dict[str, Any] | None:
    """The record of a job that is done already."""
    if records.state(job.case, digest) is not State.DONE or records.missing_methods(job.case.name, job.methods):
        return None
    return records.read(job.case.name)


_READY: dict[str, tuple[CaseReader, CaseExplainer, CaseWriter]] = {}


def _ready(work: Work) -> tuple[CaseReader, CaseExplainer, CaseWriter]:
    """Weights are loaded once a worker."""
    key = repr(work)
    if key not in _READY:
        device = find_device(work.device)
        bundle = load_bundle(work.bundle, device, work.weights, work.trusted, work.changes, work.overlays)
        writer = CaseWriter(bundle, Records(work.output), work.settings.digest)
        _READY.clear()
        _READY[key] = (CaseReader(bundle), CaseExplainer(bundle, work.comparison), writer)
    return _READY[key]
