"""How far a run is: a bar on a terminal, a line a case elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm


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
