"""A run that is killed at random moments ends, in the end, as one that nobody disturbed; byte for byte."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from killing import command, run_with_kills, tree

from unoise_monai.phantoms import write_phantom_cohort


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_is_lost(kills: int, tmp_path: Path) -> None:
    folder = write_phantom_cohort(
        tmp_path / "phantoms", count=4, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(folder, undisturbed), check=True)
    # The reader takes seconds to begin, so that early moments have no case and late ones all.
    hit, ended = run_with_kills(folder, killed, kills)
    assert hit == kills
    expected, found = tree(undisturbed), tree(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    # Four volumes and pictures a case, its record, three tables' worth of files and run.json.
    assert len(expected) == 4 * 5 + 3
    if kills > 2:
        print(f"{hit} kills, {ended} runs that ended before they were killed, 4 cases, 0 lost")  # noqa: T201
