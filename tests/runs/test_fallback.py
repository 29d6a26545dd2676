"""Out of memory, less is taken, then the CPU; other errors come out as they are."""

from __future__ import annotations

import pytest
import torch

from unoise_monai.runs.settings import Attempt, attempts, is_out_of_memory, with_less_memory

CPU = torch.device("cpu")


def test_memory_halves_and_then_the_cpu_is_asked() -> None:
    tried = list(attempts(torch.device("cuda"), 8.0))
    assert [(attempt.device.type, attempt.memory_gb) for attempt in tried] == [
        ("cuda", 8.0),
        ("cuda", 4.0),
        ("cuda", 2.0),
        ("cuda", 1.0),
        ("cpu", None),
    ]
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


def test_what_runs_at_once_has_no_note() -> None:
    assert with_less_memory(lambda attempt: 1, CPU, None, "a") == (1, "")


def test_never_enough_is_said() -> None:
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
