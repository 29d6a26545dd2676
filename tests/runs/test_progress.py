"""Lines where there is no terminal; failures are always told."""

from __future__ import annotations

import io
from typing import Any

import pytest

from unoise_monai.runs.run import Progress, duration


def done(name: str, **more: Any) -> dict[str, Any]:
    return {"case": name, "status": "done", "seconds": 1.25, "figures": {}, "note": "", **more}


FAILED = {"case": "b", "status": "failed", "stage": "load", "reason": "file is empty"}


def test_a_line_a_case() -> None:
    stream = io.StringIO()
    progress = Progress(3, stream=stream)
    progress(done("a", figures={"dice": 0.875}, note="on the CPU"))
    progress(FAILED)
    progress(done("c"))
    progress.close()
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("[1/3] a: 1.2 s, Dice 0.875, on the CPU; ")
    assert first.endswith(" left")
    assert "cases/s" in first
    assert second == "[2/3] b: failed at load: file is empty"
    assert third.endswith("0:00 left")


def test_quiet_tells_failures_only() -> None:
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
