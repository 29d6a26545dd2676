"""The scoreboard of attribution methods over real volumes: a bundle's explain.yaml over all its validation cases.

    python benchmarks/scoreboard.py --cases 30          # Task04, hippocampus: about an hour on 2 CPU cores
    python benchmarks/scoreboard.py --jobs 1 --cases 3  # a look

Stopped, it goes on with what is missing. Writes benchmarks/results/scoreboard_<bundle>.{csv,md,json} and
docs/images/scoreboard_*.png. Each of the jobs explains its own cases, on one core: seconds are those of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unoise_monai.runs.comparison import CaseFiles
from visibility import REAL, ROOT, machine

from unoise_monai.runs import find_cases
from unoise_monai.runs.scoreboard import MethodRow, write_scoreboard

COLUMNS = (
    ("insertion_zero", "insertion, zero"),
    ("insertion_noise", "insertion, noise"),
    ("insertion_blur", "insertion, blur"),
    ("deletion_zero", "deletion, zero"),
    ("deletion_noise", "deletion, noise"),
    ("deletion_blur", "deletion, blur"),
    ("infidelity", "infidelity"),
    ("sensitivity", "sensitivity"),
    ("randomisation_correlation", "random weights"),
)
INTERVALS = ("insertion_zero", "insertion_noise", "insertion_blur")
ROBUST_CASES = 3
VISIBLE = "models/visible.pt"
"""Weights of a noise model that was trained on visible shares, where the bundle has them: a method of its own."""
SHARED = ("scorer", "truth", "memory_gb", "precision")
"""Settings of all results; the others are of methods or cases."""
PICTURES = ("curves_insertion_zero", "curves_insertion_noise", "curves_insertion_blur", "curves_deletion_zero", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="hippocampus_mr_unoise", choices=sorted(REAL))
    parser.add_argument("--data", type=Path, help="the Decathlon folder")
    parser.add_argument("--out", type=Path, help="where the maps and scores of each case go")
    parser.add_argument("--cases", type=int, help="the first so many; all validation cases by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other, of one core each")
    arguments = parser.parse_args()
    bundle = ROOT / "bundles" / arguments.bundle
    data = (arguments.data or next(path for path in REAL[arguments.bundle] if path.is_dir())).resolve()
    out = (arguments.out or ROOT / "runs" / f"scoreboard_{arguments.bundle}").resolve()
    split = bundle / "models" / "split.json"
    names = [case["case"] for case in find_cases(data, split, "validation", choice=arguments.cases)]

    log = out / "logs"
    log.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    rounds = {"cases": [], "visible": ["--methods", "['unoise']", "--weights", VISIBLE]}
    for folder, options in rounds.items():
        if folder == "visible" and not (bundle / VISIBLE).is_file():
            continue
        jobs = []
        for number, (robust, mine) in enumerate(shares_of(names, arguments.jobs)):
            with (log / f"{folder}_{number}.log").open("w") as file:
                command = [*explain(data, out / folder, mine), *options]
                command += ["--comparison#robust_cases", str(robust), "--comparison#pictures", "False"]
                jobs.append(subprocess.Popen(command, cwd=bundle, env=environment, stdout=file, stderr=file))
        if any([job.wait() for job in jobs]):
            sys.exit(f"a job failed, see {log}")
    finish(arguments.bundle, out, names)


def shares_of(names: Sequence[str], jobs: int) -> list[tuple[int, list[str]]]:
    """Of each job, on how many cases it measures robustness, and its cases.

    All of these are the first job's, for the first of them says of which methods it is measured.
    """
    first, others = list(names[:ROBUST_CASES]), names[ROBUST_CASES:]
    found = [(len(first), [*first, *others[jobs - 1 :: jobs]])]
    found += [(0, list(others[number::jobs])) for number in range(jobs - 1)]
    return [(robust, cases) for robust, cases in found if cases]


def explain(data: Path, out: Path, names: list[str]) -> list[str]:
    """The command that a user would give, for some of the cases."""
    configs = ["configs/inference.yaml", "configs/explain.yaml"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", repr(configs)]
    return [*command, "--dataset_dir", str(data), "--output_dir", str(out), "--cases", repr(names)]


def finish(bundle: str, out: Path, names: list[str]) -> None:
    """The scoreboard over the cases of all jobs."""
    found = sorted(path.relative_to(out) for path in out.glob(f"*/{names[0]}/*/scores.json"))
    methods = {("visible_share" if path.parts[0] == "visible" else path.parts[2]): path.parts for path in found}
    results = [
        {**CaseFiles(out / folder).read(case, own), "method": method}
        for case in names
        for method, (folder, _, own, _) in sorted(methods.items())
    ]
    rows = write_scoreboard(results, out)
    target = ROOT / "benchmarks" / "results"
    for suffix in ("csv", "md"):
        shutil.copy(out / f"scoreboard.{suffix}", target / f"scoreboard_{bundle}.{suffix}")
    for picture in PICTURES:
        shutil.copy(out / f"{picture}.png", ROOT / "docs" / "images" / f"scoreboard_{picture}.png")
    first = results[: len(methods)]
    summary = {
        "command": " ".join(["python", "benchmarks/scoreboard.py", *sys.argv[1:]]),
        "machine": f"{machine()}, one core a job",
        "cases": names,
        "seed": 0,
        "settings": {key: first[0]["settings"][key] for key in SHARED},
        "weights_sha256": sorted({result["settings"]["weights"] for result in results}),
        "options": {result["method"]: result["settings"]["options"] for result in first},
        "robust": {
            "passes_at_most": first[0]["settings"]["robust_passes"],
            "cases": list(dict.fromkeys(result["case"] for result in results if result["settings"]["robust"])),
            "methods": [result["method"] for result in first if "sensitivity" in result.get("scores", {})],
        },
        "failed": [f"{result['method']} on {result['case']}" for result in results if "failed" in result],
        "ranks": {row.method: round(row.overall, 2) for row in rows if row.overall == row.overall},
    }
    (target / f"scoreboard_{bundle}.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.stdout.write(table(rows))


def table(rows: list[MethodRow]) -> str:
    """The columns that docs/scoreboard.md quotes."""
    head = ["method", "rank", *(title for _, title in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.method, f"{row.overall:.1f}" if row.overall == row.overall else "-"]
        for name, _ in COLUMNS:
            found = row.scores[name]
            bounds = f" ({found.low:.2f}-{found.high:.2f})" if name in INTERVALS else ""
            cells.append(f"{found.mean:.3f}{bounds}" if found.count else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
