"""The scoreboard of attribution methods over real volumes: a bundle's explain.yaml over all its validation cases.

    python benchmarks/scoreboard.py --cases 30          # Task04, hippocampus: about an hour on 2 CPU cores
    python benchmarks/scoreboard.py --jobs 1 --cases 3  # a look

Stopped, it goes on with what is missing. Writes benchmarks/results/scoreboard_<bundle>.{csv,md,json} and
docs/images/scoreboard_*.png. Each of the jobs explains its own cases, on one core: seconds are those of one core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from visibility import REAL, ROOT, machine

from unoise_monai.bundle import Bundle, load_bundle
from unoise_monai.data import Case, choose_cases, find_labelled
from unoise_monai.runs import Comparison, explain_cases, settings_of
from unoise_monai.runs.records import Records
from unoise_monai.runs.run import method_results
from unoise_monai.runs.scoreboard import MethodRow, write_scoreboard
from unoise_monai.runs.settings import read_run

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
VISIBLE = "models/visible.pt"
"""Weights of a noise model that was trained on visible shares, where the bundle has them: a method of its own."""
CHANGES: dict[str, list[str]] = {"pictures": []}
PICTURES = ("curves_insertion_zero", "curves_insertion_noise", "curves_insertion_blur", "curves_deletion_zero", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="hippocampus_mr_unoise", choices=sorted(REAL))
    parser.add_argument("--data", type=Path, help="the Decathlon folder")
    parser.add_argument("--out", type=Path, help="where the maps and scores of each case go")
    parser.add_argument("--cases", type=int, help="the first so many; all validation cases by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other, of one core each")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = ROOT / "bundles" / arguments.bundle
    data = (arguments.data or next(path for path in REAL[arguments.bundle] if path.is_dir())).resolve()
    out = (arguments.out or ROOT / "runs" / f"scoreboard_{arguments.bundle}").resolve()
    chosen = choose_cases(find_labelled(data), folder / "models" / "split.json", "validation", arguments.cases)
    cases = [Case.of(item) for item in chosen]
    runs = {"cases": load(folder)}
    if (folder / VISIBLE).is_file():
        runs["visible"] = load(folder, folder / VISIBLE)
    if arguments.job is not None:
        for name, (bundle, comparison) in runs.items():
            settings, part = settings_of(bundle, CHANGES), (arguments.job, arguments.jobs)
            explain_cases(cases, bundle, settings, out / name, comparison, part=part, quiet=True)
        return

    log = out / "logs"
    log.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    jobs = []
    for number in range(1, arguments.jobs + 1):
        with (log / f"{number}.log").open("w") as file:
            command = [sys.executable, *sys.argv, "--job", str(number)]
            jobs.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    if any([job.wait() for job in jobs]):
        sys.exit(f"a job failed, see {log}")
    finish(arguments.bundle, out, cases, {name: comparison for name, (_, comparison) in runs.items()})


def load(folder: Path, weights: Path | None = None) -> tuple[Bundle, Comparison]:
    """A bundle with its explain.yaml; with other weights, of the noise model alone."""
    bundle = load_bundle(folder, "cpu", weights, changes=CHANGES, overlays=["explain"])
    comparison: Comparison = bundle.parsed("comparison")
    return bundle, comparison if weights is None else replace(comparison, methods=["unoise"])


def finish(bundle: str, out: Path, cases: Sequence[Case], comparisons: dict[str, Comparison]) -> None:
    """The scoreboard over the cases of all jobs."""
    results = method_results(Records(out / "cases"), comparisons["cases"])
    if "visible" in comparisons:
        found = method_results(Records(out / "visible"), comparisons["visible"])
        results += [{**result, "method": "visible_share"} for result in found]
    # An earlier look may have explained others.
    names = [case.name for case in cases]
    results = [result for result in results if result["case"] in names]
    rows = write_scoreboard(results, out)
    target = ROOT / "benchmarks" / "results"
    for suffix in ("csv", "md"):
        shutil.copy(out / f"scoreboard.{suffix}", target / f"scoreboard_{bundle}.{suffix}")
    for picture in PICTURES:
        shutil.copy(out / f"{picture}.png", ROOT / "docs" / "images" / f"scoreboard_{picture}.png")
    comparison = comparisons["cases"]
    summary = {
        "command": " ".join(["python", "benchmarks/scoreboard.py", *sys.argv[1:]]),
        "machine": f"{machine()}, one core a job",
        "cases": names,
        "seed": 0,
        "settings": {name: read_run(out / name)["settings"] for name in comparisons},
        "scorer": repr(comparison.scorer),
        "options": {name: comparison.options.get(name, {}) for name in comparison.methods},
        "robust": {
            "passes_at_most": comparison.robust_passes,
            "cases": names[: comparison.robust_cases],
            "methods": sorted({result["method"] for result in results if "sensitivity" in result.get("scores", {})}),
        },
        "failed": [f"{result['method']} on {result['case']}" for result in results if "failed" in result],
        "ranks": {row.method: round(row.overall, 2) for row in rows if row.overall == row.overall},
    }
    (target / f"scoreboard_{bundle}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
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
