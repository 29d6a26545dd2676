"""No case ends a run: not one that crashes its reader, hangs it, or fails anywhere; what is shown meanwhile."""

import errno
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reading import Dead, Misreader, SlowReader

from unoise_monai.bundle import Bundle
from unoise_monai.data.cases import Case
from unoise_monai.runs.explain import CaseExplainer, Explained, Job, Loaded
from unoise_monai.runs.records import OutputFault, Records
from unoise_monai.runs.run import Progress, duration, run_local
from unoise_monai.runs.save import CaseWriter


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def jobs(cases: list[Case]) -> list[Job]:
    return [Job(case) for case in cases]


def test_each_fault_is_one_line_and_the_others_are_done(bundle: Bundle, cases: list[Case], records: Records) -> None:
    class Fails(CaseExplainer):
        def __call__(self, loaded: Loaded, job: Job) -> Explained:
            if loaded.case.name == "fails":
                raise RuntimeError(f"no {loaded.case.files[0]}")
            return super().__call__(loaded, job)

    class Unwritable(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            if explained.loaded.case.name == "unwritable":
                raise OSError(errno.ENAMETOOLONG, "name too long")
            return super().__call__(explained)

    bad = [replace(cases[0], name=name) for name in ("crashes", "raises", "fails", "hangs", "unwritable")]
    mixed = [cases[0], bad[0], cases[1], *bad[1:], cases[2]]
    noted: list[dict[str, Any]] = []
    writer = Unwritable(bundle, records, "digest")
    # Time enough to begin a process on a busy machine.
    run_local(jobs(mixed), Fails(bundle), writer, noted.append, workers=2, timeout=40, read=Misreader(bundle))
    assert [record["case"] for record in noted] == [case.name for case in mixed]
    found = {record["case"]: record for record in noted}
    assert [found[case.name]["status"] for case in cases[:3]] == ["done"] * 3
    assert {name: found[name]["stage"] for name in found if "stage" in found[name]} == {
        "crashes": "load",
        "raises": "load",
        "hangs": "load",
        "fails": "explain",
        "unwritable": "save",
    }
    assert "process ended with code" in found["crashes"]["reason"]
    assert "took too long" in found["hangs"]["reason"]
    assert not any(str(cases[0].files[0].parent) in record.get("reason", "") for record in noted)
    assert {path.name for path in records.output.iterdir()} == {".unoise", *(case.name for case in cases[:3])}


def test_readers_that_cannot_begin_end_no_run(bundle: Bundle, cases: list[Case], records: Records) -> None:
    noted: list[dict[str, Any]] = []
    writer = CaseWriter(bundle, records, "")
    run_local(jobs(cases[:2]), CaseExplainer(bundle), writer, noted.append, read=Dead(bundle))
    assert [(record["case"], record["stage"]) for record in noted] == [(case.name, "load") for case in cases[:2]]
    assert "the reading process" in noted[0]["reason"]


def test_a_full_disk_ends_the_run_and_says_so(bundle: Bundle, cases: list[Case], records: Records) -> None:
    class Full(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputFault, match="No space left on device"):
        run_local(jobs(cases), CaseExplainer(bundle), Full(bundle, records, ""), lambda record: None, workers=0)


def test_reading_and_saving_overlap_the_network(bundle: Bundle, cases: list[Case], records: Records) -> None:
    """The next case is read before this one is explained, and explained before this one is saved."""
    read: list[tuple[float, float]] = []
    explained: list[tuple[float, float]] = []
    saved: list[tuple[float, float]] = []

    class Slow(CaseExplainer):
        def __call__(self, loaded: Loaded, job: Job) -> Explained:
            start = time.monotonic()
            read.append(loaded.item.pop("read"))
            time.sleep(0.5)
            result = super().__call__(loaded, job)
            explained.append((start, time.monotonic()))
            return result

    class SlowWriter(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            start = time.monotonic()
            time.sleep(0.5)
            record = super().__call__(explained)
            saved.append((start, time.monotonic()))
            return record

    writer = SlowWriter(bundle, records, "")
    run_local(jobs(cases), Slow(bundle), writer, lambda record: None, read=SlowReader(bundle))
    assert len(read) == len(explained) == len(saved) == len(cases)
    for now, following in zip(range(len(cases)), range(1, len(cases)), strict=False):
        assert read[following][0] < explained[now][1]
        assert explained[following][0] < saved[now][1]


def done(name: str, **more: Any) -> dict[str, Any]:
    return {"case": name, "status": "done", "seconds": 1.25, "numbers": {}, "note": "", **more}


FAILED = {"case": "b", "status": "failed", "stage": "load", "reason": "file is empty"}


def test_a_line_a_case() -> None:
    stream = io.StringIO()
    progress = Progress(4, stream=stream)
    progress(done("a", numbers={"dice": 0.875}, note="on the CPU"))
    progress(FAILED)
    progress(done("c", methods={"saliency": {}, "rise": {"failed": "no"}, "lime": {"failed": "none"}}))
    progress(done("d"))
    progress.close()
    first, second, third, fourth = stream.getvalue().splitlines()
    assert first.startswith("[1/4] a: 1.2 s, Dice 0.875, on the CPU; ")
    assert first.endswith(" left")
    assert "cases/s" in first
    assert second == "[2/4] b: failed at load: file is empty"
    assert third == "[3/4] c: failed at rise: no; failed at lime: none"
    assert fourth.endswith("0:00 left")


def test_quiet_shows_failures_only() -> None:
    stream = io.StringIO()
    progress = Progress(2, quiet=True, stream=stream)
    progress(done("a"))
    progress(FAILED)
    assert stream.getvalue() == "[2/2] b: failed at load: file is empty\n"


def test_a_terminal_gets_a_bar_and_lines_above_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(2, stream=stream)
    progress(done("a"))
    progress(FAILED)
    progress.close()
    assert "2/2" in stream.getvalue()
    assert "b: failed at load" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (75, "1:15"), (3700, "1:01:40")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
