"""A failed case has a line that a person can act on and that tells no path."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from pebble.common import ProcessExpired

from unoise_monai.data import CaseError
from unoise_monai.data.cases import CohortCase
from unoise_monai.runs.settings import OutputFault, check_output_fault, failure

CASE = CohortCase("P1", (Path("/data/hospital/P1.nii.gz"),), "P1.nii.gz")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CaseError("case P1: file /data/hospital/P1.nii.gz is\n empty"), "case P1: file P1.nii.gz is empty"),
        (TimeoutError(), "reading took too long: the file or its storage hangs; try it alone, or raise --timeout"),
        (
            ProcessExpired("died", -11),
            "the reading process ended with code -11: the file is corrupt, or memory ran out",
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


def test_a_reason_has_an_end() -> None:
    assert len(failure(CASE, "digest", "load", CaseError("x" * 9999))["reason"]) == 500


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_concerns_all(number: int) -> None:
    with pytest.raises(OutputFault, match="start again to go on"):
        check_output_fault(OSError(number, "no"))


def test_other_errors_concern_their_case() -> None:
    check_output_fault(OSError(errno.ENAMETOOLONG, "no"))
    check_output_fault(ValueError("no"))
