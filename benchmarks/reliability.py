"""Runs whole cohorts through `unoise explain`: how many cases were lost, how long it took, and what --fast costs.

    python benchmarks/reliability.py             # all of Task04, plain and fast, and the real CT: ten minutes
    python benchmarks/reliability.py --part 1/20 # a look

Task04 (CC BY-SA 4.0) and the CT with its organs (TotalSegmentator, CC BY 4.0) are read from ../shared/data. Writes
benchmarks/results/reliability.json and prints the table that docs/reliability.md quotes. What is there is kept: the
outputs lie in runs/reliability.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
from scipy.stats import spearmanr
from visibility import ROOT, machine

from unoise_monai.cli import Exit

DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "runs" / "reliability"
TASK04 = ["hippocampus_mr_unoise", str(DATA / "Task04_Hippocampus")]
CT = ["pancreas_ct_unoise", str(DATA / "abdomen_ct"), "--organs", str(DATA / "abdomen_ct" / "organs_001.nii.gz")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", help="of Task04, K/N; all by default")
    arguments = parser.parse_args()
    part = ["--part", arguments.part] if arguments.part else []
    runs = {
        "Task04": explain("task04", [*TASK04, *part]),
        "Task04, --fast": explain("task04_fast", [*TASK04, *part, "--fast"]),
        "abdominal CT": explain("ct", CT),
    }
    runs["Task04, --fast"]["rank_correlation"] = agreement(OUT / "task04", OUT / "task04_fast")
    result = {
        "command": " ".join(["python", "benchmarks/reliability.py", *sys.argv[1:]]),
        "machine": machine(),
        "runs": runs,
    }
    path = ROOT / "benchmarks" / "results" / "reliability.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(runs))


def explain(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run the command; what it says of itself, and means over its table."""
    start = time.perf_counter()
    bundle, data, *options = arguments
    command = [sys.executable, "-m", "unoise_monai.cli", "explain", bundle, data, str(OUT / name), *options, "--json"]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (Exit.DONE, Exit.SOME_FAILED):
        sys.exit(f"{name} ended with {ended.returncode}")
    seconds = time.perf_counter() - start
    with (OUT / name / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = json.loads(ended.stdout)
    return {
        **{key: told[key] for key in ("cases", "done", "kept", "failed")},
        "wall_seconds": None if told["kept"] else round(seconds, 1),
        "labelled": sum(bool(row["dice"]) for row in rows),
        **{key: mean(rows, key) for key in ("dice", "seconds", "peak_memory_gb")},
    }


def mean(rows: list[dict[str, str]], column: str) -> float | None:
    values = [float(row[column]) for row in rows if row.get(column)]
    return round(sum(values) / len(values), 4) if values else None


def agreement(one: Path, other: Path) -> float:
    """The mean over cases of the rank correlation of two runs' importance."""
    found = []
    for path in sorted(one.glob("*/*_importance.nii.gz")):
        maps = [nib.load(each).get_fdata().ravel() for each in (path, other / path.relative_to(one))]
        found.append(float(spearmanr(*maps).statistic))
    return round(sum(found) / len(found), 4)


def table(runs: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| cohort | cases | failed | Dice, mean of labelled | seconds a case | whole run, s | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        lines.append(
            f"| {name} | {run['cases']} | {run['failed']} | {run['dice']:.3f} ({run['labelled']}) "
            f"| {run['seconds']:.2f} | {run['wall_seconds'] or 0:.0f} | {run['peak_memory_gb']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
