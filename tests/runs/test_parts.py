"""Parts that run at the same time, as the tasks of a SLURM array do, fill one output as one run does."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

from killing import command, tree

from unoise_monai.phantoms import write_phantom_cohort


def test_two_at_once(tmp_path: Path) -> None:
    folder = write_phantom_cohort(tmp_path / "phantoms", 5, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False)
    output = tmp_path / "parts"
    parts = [
        subprocess.Popen([*command(folder, output), "--part", f"{k}/2"], stderr=subprocess.PIPE, text=True)
        for k in (1, 2)
    ]
    assert [part.communicate()[1] for part in parts] == ["", ""]
    assert [part.returncode for part in parts] == [0, 0]
    with (output / "cohort.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 5
    subprocess.run(command(folder, tmp_path / "whole"), check=True)
    found, expected = tree(output), tree(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
