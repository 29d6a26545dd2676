"""Runs that are killed, that run beside each other, or whose disk is full end, in the end, as one left in peace."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import check_same, command, run_with_kills, table, tree

from unoise_monai.cli import Exit
from unoise_monai.phantoms import write_phantom_cohort

CASES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interrupted") / "phantoms"
    return write_phantom_cohort(root, CASES, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False)


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("expected") / "out"
    subprocess.run(command(folder, output), check=True)
    # Two volumes and two pictures a case, its record, two tables and run.json.
    assert len(tree(output)) == CASES * 5 + 3
    return output


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_kills_lose_nothing(kills: int, folder: Path, expected: Path, tmp_path: Path) -> None:
    # The reader takes seconds to begin, so that early moments have no case and late ones all.
    hit, ended = run_with_kills(folder, tmp_path / "out", kills)
    assert hit == kills
    check_same(tmp_path / "out", expected)
    if kills > 2:
        print(f"{hit} kills, {ended} runs that ended before they were killed, {CASES} cases, 0 lost")  # noqa: T201


def test_two_parts_at_once(folder: Path, expected: Path, tmp_path: Path) -> None:
    """As the tasks of a SLURM array."""
    parts = [
        subprocess.Popen([*command(folder, tmp_path / "out"), "--part", f"{k}/2"], stderr=subprocess.PIPE, text=True)
        for k in (1, 2)
    ]
    assert [part.communicate()[1] for part in parts] == ["", ""]
    assert [part.returncode for part in parts] == [0, 0]
    assert [row["status"] for row in table(tmp_path / "out", "cohort.csv")] == ["done"] * CASES
    check_same(tmp_path / "out", expected)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 kB: enough for a case or two."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs the right to")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_full_disk_and_then_room(disk: Path, folder: Path, expected: Path) -> None:
    output = disk / "out"
    for option, reason in (("rw", "No space left on device"), ("ro", "Read-only file system")):
        remount(disk, option)
        stopped = subprocess.run(command(folder, output), capture_output=True, text=True, check=False)
        assert stopped.returncode == Exit.ERROR, stopped.stderr
        assert reason in stopped.stderr
        assert "start again to go on" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    remount(disk, "rw")
    remount(disk, "size=64m")
    subprocess.run(command(folder, output), check=True)
    check_same(output, expected)
