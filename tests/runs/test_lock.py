"""One run at a time, and parts beside each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from unoise_monai.runs.records import OutputInUse, claimed, tables_locked


def hold(output: Path, part: tuple[int, int] | None, end: Connection) -> None:
    with claimed(output, part):
        end.send(os.getpid())
        end.recv()


class Holder:
    """Another process that holds an output until it is told, or killed."""

    def __init__(self, output: Path, part: tuple[int, int] | None = None) -> None:
        self.end, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=hold, args=(output, part, other))
        self.process.start()
        other.close()
        self.pid = self.end.recv()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()


def test_a_second_run_is_refused_and_told_by_whom_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        with pytest.raises(OutputInUse, match=f"process {holder.pid} on"), claimed(tmp_path):
            pass
        with pytest.raises(OutputInUse), claimed(tmp_path, (1, 2)):
            pass
    finally:
        holder.kill()
    with claimed(tmp_path):
        pass


def test_parts_of_one_whole_run_beside_each_other_and_nothing_else_does(tmp_path: Path) -> None:
    with claimed(tmp_path, (1, 2)), claimed(tmp_path, (2, 2)):
        for part in (None, (1, 2), (1, 3)):
            with pytest.raises(OutputInUse), claimed(tmp_path, part):
                pass
    with claimed(tmp_path):
        pass


def test_a_run_that_ends_leaves_no_owner(tmp_path: Path) -> None:
    with claimed(tmp_path):
        assert [path.name for path in (tmp_path / ".unoise").glob("*.owner")] == ["whole.owner"]
    assert list((tmp_path / ".unoise").glob("*.owner")) == []


def test_the_tables_are_free_again_after_use(tmp_path: Path) -> None:
    (tmp_path / ".unoise").mkdir()
    for _ in range(2):
        with tables_locked(tmp_path):
            pass
