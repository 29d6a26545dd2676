"""Kills a cohort run at random moments until it has ended, and compares what is left with a run that nobody disturbed."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

MEASURED = ("seconds", "peak_memory_gb")
"""What differs from run to run."""
OWN = (".lock", ".run", ".owner")


BUNDLE = "pancreas_ct_unoise"


def command(folder: Path, output: Path) -> list[str]:
    options = ["--device", "cpu", "--precision", "fp32", "--quiet"]
    return [sys.executable, "-m", "unoise_monai.cli", "explain", BUNDLE, str(folder), str(output), *options]


def run_with_kills(folder: Path, output: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """Start a run again and again; kill it (SIGKILL, with its readers) after a random time, ``kills`` times.

    The longest time to live is found on the way: it grows where nothing came of the last one, so that kills fall
    anywhere between the first import and the last table.

    Returns:
        how many kills hit a run at work, and how many runs ended before their time came.
    """
    draw = random.Random(seed)
    survived = ended = 0
    seconds = 12.0
    while survived < kills:
        process = subprocess.Popen(command(folder, output), start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            survived += 1
            seconds = min(seconds * 1.02, 40.0)
            continue
        # All is done: what the kills are to hit is taken away again, a case or two.
        ended += 1
        records = sorted((output / ".unoise" / "records").glob("*.json"))
        for record in draw.sample(records, k=len(records) // 2 + 1):
            record.unlink()
    subprocess.run(command(folder, output), check=True)
    return survived, ended


def kill(process: subprocess.Popen[bytes]) -> None:
    """The whole session, as a machine that loses its power."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.05)


def tree(output: Path) -> dict[str, bytes]:
    """Every file of an output, without what is measured."""
    found = {}
    for path in sorted(output.rglob("*")):
        if not path.is_file() or path.suffix in OWN:
            continue
        content = path.read_bytes()
        if path.name == "cohort.csv":
            rows = [
                {name: value for name, value in row.items() if name not in MEASURED}
                for row in csv.DictReader(io.StringIO(content.decode()))
            ]
            content = json.dumps(rows).encode()
        elif path.parent.name == "records":
            content = json.dumps(
                {name: value for name, value in json.loads(content).items() if name not in MEASURED}
            ).encode()
        found[str(path.relative_to(output))] = content
    return found
