"""A failed case has a line that a person can act on and that tells no path; out of memory, less is taken."""

import errno
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from pebble.common import ProcessExpired

from unoise_monai.data import CaseError
from unoise_monai.data.cases import Case
from unoise_monai.inference.memory import Attempt, attempts, is_out_of_memory, with_less_memory
from unoise_monai.runs.records import OutputFault, check_output_fault, failure, reason_for

CPU = torch.device("cpu")
CASE = Case("P1", (Path("/data/hospital/P1.nii.gz"),), "P1.nii.gz")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CaseError("case P1: file /data/hospital/P1.nii.gz is\n empty"), "case P1: file P1.nii.gz is empty"),
        (TimeoutError(), "reading took too long: the file or its storage hangs; try it alone, or raise --timeout"),
        (
            ProcessExpired("died", -11),
            "the reading process ended with code -11: the file is corrupt, or memory ran out",
        ),
        (
            BrokenProcessPool("All workers expired"),
            "the reading processes ended before they could read: memory ran out; try --workers 0",
        ),
        (MemoryError("of 3 GB"), "out of memory: of 3 GB; try --fast, or a machine with more"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/hospital/P1.nii.gz"),
            "Permission denied: [Errno 13] Permission denied: 'P1.nii.gz'",
        ),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_the_reason_is_for_a_person(error: BaseException, reason: str) -> None:
    record = failure(CASE, "digest", "load", error)
    assert record["reason"] == reason
    assert (record["case"], record["status"], record["stage"]) == ("P1", "failed", "load")
    assert "hospital" not in str(record)


def test_a_reason_has_an_end_and_no_folder_that_is_named() -> None:
    assert len(failure(CASE, "digest", "load", CaseError("x" * 9999))["reason"]) == 500
    assert reason_for(CASE, CaseError("no /private/truth/P1.nii.gz"), ["/private/truth"]) == "no P1.nii.gz"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_concerns_all(number: int) -> None:
    with pytest.raises(OutputFault, match="start again to go on"):
        check_output_fault(OSError(number, "no"))


def test_other_errors_concern_their_case() -> None:
    check_output_fault(OSError(errno.ENAMETOOLONG, "no"))
    check_output_fault(ValueError("no"))


def test_memory_halves_and_then_the_cpu_is_asked() -> None:
    tried = list(attempts(torch.device("cuda"), 8.0))
    expected = [*(("cuda", memory_gb) for memory_gb in (8.0, 4.0, 2.0, 1.0)), ("cpu", None)]
    assert [(attempt.device.type, attempt.memory_gb) for attempt in tried] == expected
    assert [attempt.device.type for attempt in attempts(CPU, 8.0)] == ["cpu"] * 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("x"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_the_first_attempt_that_is_enough_counts_and_says_so(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def run(attempt: Attempt) -> float | None:
        if attempt.memory_gb is None or attempt.memory_gb > 3:
            raise error
        return attempt.memory_gb

    assert with_less_memory(run, CPU, 8.0, "case a") == (2.0, "out of memory: tiles within 2 GB")
    assert [record.getMessage() for record in caplog.records] == [
        "case a: out of memory: tiles within 4 GB",
        "case a: out of memory: tiles within 2 GB",
    ]


def test_what_runs_at_once_has_no_note_and_never_enough_is_said() -> None:
    assert with_less_memory(lambda attempt: 1, CPU, None, "a") == (1, "")

    def run(attempt: Attempt) -> None:
        raise MemoryError("of 3 GB")

    with pytest.raises(MemoryError, match="one tile of the volume, which it does not: of 3 GB"):
        with_less_memory(run, CPU, 1.0, "a")


def test_other_errors_are_tried_once() -> None:
    tried = []

    def run(attempt: Attempt) -> None:
        tried.append(attempt)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        with_less_memory(run, CPU, 1.0, "a")
    assert len(tried) == 1
    assert not is_out_of_memory(ValueError("x"))
