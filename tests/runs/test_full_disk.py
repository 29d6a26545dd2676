"""A disk that is full or read-only ends a run with a clear line, and what was done stays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import command, tree

from unoise_monai.cli import Exit
from unoise_monai.phantoms import write_phantom_cohort


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


def test_a_full_disk_and_then_room(disk: Path, tmp_path: Path) -> None:
    folder = write_phantom_cohort(
        tmp_path / "phantoms", count=4, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False
    )
    output = disk / "out"
    full = subprocess.run(command(folder, output), capture_output=True, text=True, check=False)
    assert full.returncode == Exit.ERROR, full.stderr
    assert "No space left on device" in full.stderr
    assert "start again to go on" in full.stderr
    assert "Traceback" not in full.stderr
    remount(disk, "ro")
    refused = subprocess.run(command(folder, output), capture_output=True, text=True, check=False)
    assert refused.returncode == Exit.ERROR
    assert "Read-only file system" in refused.stderr
    assert "Traceback" not in refused.stderr
    remount(disk, "rw")
    remount(disk, "size=64m")
    subprocess.run(command(folder, output), check=True)
    subprocess.run(command(folder, tmp_path / "expected"), check=True)
    found, expected = tree(output), tree(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
