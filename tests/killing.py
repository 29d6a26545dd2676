"""Kills a cohort run at random moments until it has ended, and compares outputs."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MEASURED = ("seconds", "peak_memory_gb")
"""What differs from run to run."""
OWN = (".lock", ".run", ".owner")


BUNDLE = "pancreas_ct_unoise"


def command(folder: Path, output: Path) -> list[str]:
    options = ["--device", "cpu", "--precision", "fp32", "--quiet"]
    return [sys.executable, "-m", "unoise_monai.cli", "explain", BUNDLE, str(folder), str(output), *options]


def run_with_kills(folder: Path, output: Path, kills: int, seconds: float = 12.0, seed: int = 0) -> tuple[int, int]:
    """Start a run again and again; kill it (SIGKILL, with its readers) at a random moment, ``kills`` times.

    The moment is counted from when the run holds the output, so that no kill hits mere imports. Whenever a run ends
    before its moment came, half of the cases are taken away again. The latest moment is after so many seconds.

    Returns how many kills hit a run at work, and how many runs ended before.
    """
    draw = np.random.default_rng(seed)
    hit = ended = 0
    while hit < kills:
        process = subprocess.Popen(command(folder, output), start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (output / ".unoise" / "whole.owner").exists():
            time.sleep(0.01)
        try:
            process.wait(draw.uniform(0.0, seconds))
            ended += 1
            records = sorted((output / ".unoise" / "records").glob("*.json"))
            for record in draw.permutation(np.array(records, dtype=object))[: len(records) // 2 + 1]:
                record.unlink()
        except subprocess.TimeoutExpired:
            kill(process)
            hit += 1
            # Left by the run that was killed; the next one writes its own.
            (output / ".unoise" / "whole.owner").unlink(missing_ok=True)
    subprocess.run(command(folder, output), check=True)
    return hit, ended


def kill(process: subprocess.Popen[bytes]) -> None:
    """The whole session, as a machine that loses its power."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.05)


def table(output: Path, name: str) -> list[dict[str, str]]:
    with (output / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def check_same(found: Path, expected: Path) -> None:
    """Two outputs hold the same files, byte for byte but for what is measured."""
    one, other = tree(found), tree(expected)
    assert one.keys() == other.keys()
    assert [name for name in other if one[name] != other[name]] == []


def tree(output: Path) -> dict[str, bytes]:
    """Every file of an output, without what is measured."""
    found = {}
    for name, content in contents(output).items():
        path = Path(name)
        if path.suffix in OWN:
            continue
        if path.name == "cohort.csv":
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            content = json.dumps([without_measured(row) for row in rows]).encode()
        elif path.parent.name == "records":
            content = json.dumps(without_measured(json.loads(content))).encode()
        found[name] = content
    return found


def without_measured(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MEASURED}
