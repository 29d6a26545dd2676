"""Breaks the core on purpose, one place at a time, and counts how often a test notices.

    python benchmarks/mutants.py                 # all of them; half an hour on one core that others use, too
    python benchmarks/mutants.py --only tiling   # those of one subject; writes no result
    python benchmarks/mutants.py --find          # only where each text stands

A mutant is a text of the package and what takes its place. It is looked for in every module, so the list holds while
code moves; a text that is gone, or stands twice, counts as survived until the list is brought up to date. Each mutant
is put into a copy of the tree (what git tracks, or would), and the tests of its subject run there. Before that they run
without one and have to pass. Killed is what makes them fail, or take much longer than they should.

Writes benchmarks/results/mutants.json and prints the table. Ends with 1 where fewer than ``--threshold`` are killed.
"""

import argparse
import ast
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unoise_monai"

TESTS: dict[str, tuple[str, ...]] = {
    "tiling": ("tests/inference/test_tiling.py", "tests/inference/test_volume.py"),
    "memory": ("tests/inference/test_memory.py",),
    "losses": ("tests/losses",),
    "segmenter": ("tests/test_unoise.py",),
    "visibility": ("tests/metrics/test_visibility.py", "tests/metrics/test_hiding.py"),
    "bootstrap": ("tests/metrics/test_bootstrap.py",),
    "infidelity": ("tests/metrics/test_faithfulness.py",),
    "targets": ("tests/attribution/test_targets.py",),
    "attribution": (
        "tests/attribution/test_layers.py",
        "tests/attribution/test_every_method.py::test_an_option_out_of_range",
    ),
    "nifti writer": ("tests/data/test_nifti.py",),
    "transforms": ("tests/data/test_transforms.py",),
    "split": ("tests/data/test_split.py",),
    "records": ("tests/runs/test_records.py",),
    "names": ("tests/data/test_names.py",),
    "trust": ("tests/test_trust.py",),
    "mip": ("tests/render/test_mip.py", "tests/render/test_projection.py"),
}
"""What pytest is told for each subject: the one place to change when tests move."""


class Mutant(NamedTuple):
    """A name, what it is about (a key of `TESTS`), a text that stands once in the package, and what replaces it."""

    name: str
    subject: str
    original: str
    mutated: str


MUTANTS = [
    Mutant(
        "halo is rounded down to the stride",
        "tiling",
        "margin = -(-halo // stride) * stride",
        "margin = halo // stride * stride",
    ),
    Mutant(
        "a tile's core reaches its window's end",
        "tiling",
        "last = side if start + extent == side else start + extent - margin",
        "last = side if start + extent == side else start + extent",
    ),
    Mutant(
        "a stride of True is a number",
        "tiling",
        "isinstance(value, int) and not isinstance(value, bool) and value >= least",
        "isinstance(value, int) and value >= least",
    ),
    Mutant(
        "a stride of 0 is a stride",
        "tiling",
        "not isinstance(value, bool) and value >= least else None",
        "not isinstance(value, bool) and value >= 0 else None",
    ),
    Mutant(
        "a float stride is a whole number",
        "tiling",
        "return value if isinstance(value, int) and not isinstance(value, bool)",
        "return value if isinstance(value, (int, float)) and not isinstance(value, bool)",
    ),
    Mutant(
        "norms in training mode see their window only",
        "tiling",
        'return module.training or getattr(module, "running_mean", None) is None',
        'return getattr(module, "running_mean", None) is None',
    ),
    Mutant(
        "one halo of context where gradients are clipped",
        "tiling",
        "context = 2 * -(-halo // stride) * stride if self.clips else halo",
        "context = -(-halo // stride) * stride if self.clips else halo",
    ),
    Mutant(
        "outputs that tiles share send their gradients twice",
        "tiling",
        "upstream[(..., *inner)] = gradient[(..., *core)]",
        "upstream = gradient[(..., *window)]",
    ),
    Mutant(
        "existing tensors count as new",
        "memory",
        "self._live = {id(storage): 0 for storage in self._existing}",
        "self._live = {}",
    ),
    Mutant(
        "the last sum of live tensors is the peak",
        "memory",
        "self.peak = max(self.peak, sum(self._live.values()))",
        "self.peak = sum(self._live.values())",
    ),
    Mutant(
        "costs with and without gradients are one",
        "memory",
        "key = (block[1], len(block), str(device), dtype, gradient)",
        "key = (block[1], len(block), str(device), dtype)",
    ),
    Mutant(
        "image and output of one item for a batch",
        "memory",
        "4 * batch * (channels + cost.out_channels) * math.prod(grid)",
        "4 * (channels + cost.out_channels) * math.prod(grid)",
    ),
    Mutant(
        "neighbouring tiles share one halo",
        "memory",
        "overlap = 2 * -(-halo // stride)",
        "overlap = -(-halo // stride)",
    ),
    Mutant(
        "noise is punished",
        "losses",
        "return utility_loss(logits, target) - float(self.noise_ratio)",
        "return utility_loss(logits, target) + float(self.noise_ratio)",
    ),
    Mutant(
        "a missed voxel weighs as a false one",
        "losses",
        "beta=false_negatives,",
        "beta=false_positives,",
    ),
    Mutant(
        "no IoU term",
        "losses",
        "return entropy + self.iou(*pair) + self.dice(*pair)",
        "return entropy + self.dice(*pair)",
    ),
    Mutant(
        "one voxel too many is shown",
        "losses",
        "shown = (_places(flat) < count[:, None])",
        "shown = (_places(flat) <= count[:, None])",
    ),
    Mutant(
        "the noise ratio falls without a bound",
        "losses",
        "room = max(-1.0, (float(self.survival) - self.keep) / (1 - self.keep))",
        "room = (float(self.survival) - self.keep) / (1 - self.keep)",
    ),
    Mutant(
        "one fixed plane more",
        "losses",
        "inwards = torch.minimum(index, side - 1 - index) - (FIXED_PLANES - 1)",
        "inwards = torch.minimum(index, side - 1 - index) - FIXED_PLANES",
    ),
    Mutant(
        "a fresh segmenter's utility trains",
        "segmenter",
        "self.train(self.training)",
        "self.training = True",
    ),
    Mutant(
        "no noise where the tolerance is 0",
        "segmenter",
        "return x + (self.sigma_min + scale) * eps",
        "return x + scale * eps",
    ),
    Mutant(
        "the share of one item is of the whole batch",
        "visibility",
        ".double() / importance[0].numel()",
        ".double() / importance.numel()",
    ),
    Mutant(
        "all is visible where one item is",
        "visibility",
        "return True if bool((share == 1).all()) else",
        "return True if bool((share == 1).any()) else",
    ),
    Mutant(
        "one mean for all channels",
        "visibility",
        'image.mean(axes, keepdim=True) if kind == "mean"',
        'image.mean() if kind == "mean"',
    ),
    Mutant(
        "every seed hides with the same noise",
        "visibility",
        "eps = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(self.seed))",
        "eps = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(0))",
    ),
    Mutant(
        "the metric forgets its mode",
        "visibility",
        "scorer(importance, self.levels, mode=self.mode, order=self.order)",
        "scorer(importance, self.levels, order=self.order)",
    ),
    Mutant(
        "both tails on one side",
        "bootstrap",
        "[(1 - level) / 2, (1 + level) / 2]",
        "[1 - level, 1.0]",
    ),
    Mutant(
        "one case has bounds",
        "bootstrap",
        "if len(sums) < 2:",
        "if len(sums) < 1:",
    ),
    Mutant(
        "patients without a value are drawn",
        "bootstrap",
        "_, unit = np.unique(unit[there], return_inverse=True)",
        "unit = unit[there]",
    ),
    Mutant(
        "differences forget the patients",
        "bootstrap",
        "return bootstrap_mean(one - two, level, draws, seed, groups)",
        "return bootstrap_mean(one - two, level, draws, seed)",
    ),
    Mutant(
        "copies of different items are mixed",
        "infidelity",
        "perturb(image.repeat_interleave(count, dim=0))",
        "perturb(image.repeat(count, *(1,) * (image.ndim - 1)))",
    ),
    Mutant(
        "maps are not scaled",
        "infidelity",
        "error = (scale.nan_to_num(0.0) * predicted - change)",
        "error = (predicted - change)",
    ),
    Mutant(
        "the change is not squared",
        "infidelity",
        "squared_change = change.square().mean(dim=1)",
        "squared_change = change.abs().mean(dim=1)",
    ),
    Mutant(
        "copies of one item share a draw",
        "infidelity",
        "return drawn.repeat(items, *[1] * (drawn.ndim - 1))",
        "return drawn.repeat_interleave(items, dim=0)",
    ),
    Mutant(
        "the box adds noise to what it holds",
        "infidelity",
        "torch.where(inside > 0, images - noise, 0.0)",
        "torch.where(inside > 0, noise, 0.0)",
    ),
    Mutant(
        "class 0 of one channel is class 1",
        "targets",
        "return logits if label == 1 else -logits",
        "return logits",
    ),
    Mutant(
        "a region's mean is over the volume",
        "targets",
        "return total / mask.flatten(1).sum(dim=1) if self.mean else total",
        "return total / mask[0].numel() if self.mean else total",
    ),
    Mutant(
        "background counts as foreground",
        "targets",
        "return (chosen * (labels > 0)).flatten(1).sum(dim=1)",
        "return (chosen * (labels >= 0)).flatten(1).sum(dim=1)",
    ),
    Mutant(
        "an item of a difference has all items of its targets",
        "targets",
        "return of_item(value, index) if callable(value) else value",
        "return value",
    ),
    Mutant(
        "a voxel one beyond the last",
        "targets",
        "not all(0 <= at < side for at, side in zip(index, size, strict=True))",
        "not all(0 <= at <= side for at, side in zip(index, size, strict=True))",
    ),
    Mutant(
        "one end off the layer's grid is let through",
        "attribution",
        "if any(one.start % factor or one.stop % factor for",
        "if any(one.start % factor and one.stop % factor for",
    ),
    Mutant(
        "one sample is refused",
        "attribution",
        'check_at_least("samples", samples, 1)\n    if not 0 <= sigma',
        'check_at_least("samples", samples, 2)\n    if not 0 <= sigma',
    ),
    Mutant(
        "linear is what keeps its gradient under a positive scale",
        "attribution",
        "elsewhere = _gradient(score, -0.5 * logits)",
        "elsewhere = _gradient(score, 0.5 * logits)",
    ),
    Mutant(
        "the shear limit is in mm",
        "nifti writer",
        "(header.get_qform()[:3, :3] - affine[:3, :3]) / voxel_sizes(affine)).max()",
        "(header.get_qform()[:3, :3] - affine[:3, :3])).max()",
    ),
    Mutant(
        "a source's suffix in capitals is none",
        "nifti writer",
        "os.fspath(source).lower().endswith(NIFTI_SUFFIXES)",
        "os.fspath(source).endswith(NIFTI_SUFFIXES)",
    ),
    Mutant(
        "a source on another grid is let through",
        "nifti writer",
        "GRID_LIMIT = 1e-3",
        "GRID_LIMIT = 1.0",
    ),
    Mutant(
        "the q-form is another code than the s-form",
        "nifti writer",
        "code=0 if sheared else 1, update_affine=False",
        "code=0 if sheared else 2, update_affine=False",
    ),
    Mutant(
        "a description of 80 bytes",
        "nifti writer",
        "description.encode()[:79]",
        "description.encode()[:80]",
    ),
    Mutant(
        "the lowest intensity stands for the highest",
        "transforms",
        "high = high if high > low else float(image.max())",
        "high = high if high > low else float(image.min())",
    ),
    Mutant(
        "above the percentile nothing is clipped",
        "transforms",
        "return ((image - low) * (4 / (high - low or 1)) - 1).clamp(max=3)",
        "return (image - low) * (4 / (high - low or 1)) - 1",
    ),
    Mutant(
        "air counts for the z-score",
        "transforms",
        'NormalizeIntensityd("image", nonzero=True, channel_wise=True)',
        'NormalizeIntensityd("image", nonzero=False, channel_wise=True)',
    ),
    Mutant(
        "labels are interpolated",
        "transforms",
        'mode=["bilinear", "nearest"][: len(keys)]',
        'mode=["bilinear", "bilinear"][: len(keys)]',
    ),
    Mutant(
        "images are padded with 0",
        "transforms",
        'SpatialPadd(keys, size, mode=["edge", "constant"])',
        'SpatialPadd(keys, size, mode=["constant", "constant"])',
    ),
    Mutant(
        "shares of 1 leave nothing to train on",
        "split",
        "if validation_share + test_share >= 1:",
        "if validation_share + test_share > 1:",
    ),
    Mutant(
        "a small share is no patient",
        "split",
        "validation = max(1, min(round(validation_share * count), count - 1)) if validation_share else 0",
        "validation = min(round(validation_share * count), count - 1) if validation_share else 0",
    ),
    Mutant(
        "the test takes the last patient for training",
        "split",
        "test = min(round(test_share * count), count - validation - 1)",
        "test = min(round(test_share * count), count - validation)",
    ),
    Mutant(
        "new cases are trained on",
        "split",
        'split["test"] += [by_name[name] for name in new]',
        'split["training"] += [by_name[name] for name in new]',
    ),
    Mutant(
        "a subject's name may go on",
        "split",
        'r"sub-[0-9A-Za-z]+(?=_|$)"',
        'r"sub-[0-9A-Za-z]+"',
    ),
    Mutant(
        "other settings count as done",
        "records",
        'record["status"] != "done" or record["settings"] != digest:',
        'record["status"] != "done":',
    ),
    Mutant(
        "a changed file counts as there",
        "records",
        "if not all(path.is_file() and fingerprint([path]) == known for",
        "if not all(path.is_file() for",
    ),
    Mutant(
        "any short hexadecimal file is swept away",
        "records",
        r'r"\.[0-9a-f]{32}"',
        r'r"\.[0-9a-f]+"',
    ),
    Mutant(
        "old files stay behind a case begun anew",
        "records",
        "self.forget(name, keep)",
        "self.read(name)",
    ),
    Mutant(
        "organ maps are no input",
        "records",
        "*(path for path in (case.label, case.organs) if path is not None)]",
        "*(path for path in (case.label,) if path is not None)]",
    ),
    Mutant(
        "the length counts in characters",
        "names",
        "len(name.encode()) <= LONGEST",
        "len(name) <= LONGEST",
    ),
    Mutant(
        "a name that looks hashed stays",
        "names",
        " and not HASHED.fullmatch(name):",
        ":",
    ),
    Mutant(
        "compatible letters are not alike",
        "names",
        'unicodedata.normalize("NFKC", name.casefold()) for name in names',
        "name.casefold() for name in names",
    ),
    Mutant(
        "a hashed name of 101 bytes",
        "names",
        "start = name.encode()[: LONGEST - DIGITS - 1]",
        "start = name.encode()[: LONGEST - DIGITS]",
    ),
    Mutant(
        "separators of lines are visible",
        "names",
        'unicodedata.category(char)[0] not in "CZ"',
        'unicodedata.category(char)[0] not in "C"',
    ),
    Mutant(
        "a bundle without configs is the project's own",
        "trust",
        "if files and _shipped(files):",
        "if _shipped(files):",
    ),
    Mutant(
        "a linked folder of configs is let through",
        "trust",
        "if path.is_symlink() and path.is_dir()]:",
        "if path.is_symlink() and path.is_file()]:",
    ),
    Mutant(
        "bundles beside an installed package are trusted",
        "trust",
        "return ours and all(",
        "return all(",
    ),
    Mutant(
        "a listed file may have changed",
        "trust",
        "if file_sha256(path) not in listed.get(path.resolve(), ())]",
        "if path.resolve() not in listed]",
    ),
    Mutant(
        "only the first megabyte is hashed",
        "trust",
        "while block := file.read(1 << 20):",
        "if block := file.read(1 << 20):",
    ),
    Mutant(
        "a slab thinner than a slice is empty",
        "mip",
        "count = min(size, max(1, round(thickness_mm / spacing_mm)))",
        "count = min(size, round(thickness_mm / spacing_mm))",
    ),
    Mutant(
        "a slab lies half a slice too low",
        "mip",
        "start = min(max(0, round(centre - (count - 1) / 2)), size - count)",
        "start = min(max(0, round(centre - count / 2)), size - count)",
    ),
    Mutant(
        "slabs of every axis are as thick as axial ones",
        "mip",
        "size, count = image.shape[axis], max(1, round(slab_mm / spacing_mm[axis]))",
        "size, count = image.shape[axis], max(1, round(slab_mm / spacing_mm[2]))",
    ),
    Mutant(
        "the last plane hides the others",
        "mip",
        "np.maximum(found[pixels], shown, out=found[pixels])",
        "found[pixels] = shown",
    ),
    Mutant(
        "the second class has no shadow",
        "mip",
        "if highest.max() <= 1:",
        "if highest.max() <= 2:",
    ),
]


def tree() -> list[str]:
    """The files that git tracks, or would, as they lie in the work tree."""
    command = [shutil.which("git") or "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if (ROOT / name).is_file()})


def find(mutant: Mutant, files: Sequence[str]) -> str:
    """The module that holds a mutant's text, or, not as a path, what is wrong with it."""
    modules = [name for name in files if name.startswith(f"{PACKAGE}/") and name.endswith(".py")]
    times = {name: (ROOT / name).read_text(encoding="utf-8").count(mutant.original) for name in modules}
    if sum(times.values()) != 1:
        return f"text found {sum(times.values())} times"
    module = next(name for name, count in times.items() if count)
    # What is no Python would be killed by any test.
    ast.parse((ROOT / module).read_text(encoding="utf-8").replace(mutant.original, mutant.mutated))
    return module


def run_tests(
    subject: str, files: Sequence[str], mutant: Mutant | None = None, module: str = "", timeout: float | None = None
) -> tuple[bool, float, str]:
    """Whether a subject's tests pass in a copy of the tree, the seconds that they took, and what pytest says of it."""
    with tempfile.TemporaryDirectory(prefix="mutant_") as folder:
        copy = Path(folder).resolve() / ROOT.name
        for name in files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        if mutant is not None:
            source = (copy / module).read_text(encoding="utf-8")
            (copy / module).write_text(source.replace(mutant.original, mutant.mutated), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            # Compiled files are told apart by the second; hypothesis draws the same examples, without a deadline.
            "PYTHONDONTWRITEBYTECODE": "1",
            "CI": "true",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[subject]]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            output = f"ERROR no end after {timeout:.0f} s"
        finally:
            # Its workers, too, which may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.perf_counter() - start
    said = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.MULTILINE)
    return process.returncode == 0, seconds, said[1] if said else output.strip().rpartition("\n")[2]


def measure(subjects: Sequence[str], files: Sequence[str], workers: int) -> list[dict[str, Any]]:
    """One row a mutant; raises where a subject's tests fail without one."""
    mutants = [mutant for mutant in MUTANTS if mutant.subject in subjects]

    def clean(subject: str) -> float:
        passed, seconds, said = run_tests(subject, files)
        if not passed:
            raise RuntimeError(f"the tests of {subject!r} must pass without a mutant: {said}")
        sys.stderr.write(f"{subject}: passes in {seconds:.0f} s\n")
        return seconds

    def row(mutant: Mutant) -> dict[str, Any]:
        module = find(mutant, files)
        outcome, seconds, said = "text not found", 0.0, module
        if module.endswith(".py"):
            limit = 60 + 5 * alone[mutant.subject]
            passed, seconds, said = run_tests(mutant.subject, files, mutant, module, limit)
            outcome = "survived" if passed else "killed"
        sys.stderr.write(f"{mutant.subject}: {mutant.name}: {outcome}, {seconds:.0f} s\n")
        return {**mutant._asdict(), "module": module, "outcome": outcome, "by": said, "seconds": round(seconds, 1)}

    with ThreadPoolExecutor(workers) as pool:
        alone = dict(zip(subjects, pool.map(clean, subjects), strict=True))
        return list(pool.map(row, mutants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TESTS, metavar="SUBJECT", help=", ".join(TESTS))
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time")
    parser.add_argument("--threshold", type=float, default=0.9, help="the least share that has to be killed")
    parser.add_argument("--find", action="store_true", help="say where each text stands, run nothing")
    arguments = parser.parse_args()
    subjects, files = arguments.only or list(TESTS), tree()
    if arguments.find:
        places = {mutant.name: find(mutant, files) for mutant in MUTANTS if mutant.subject in subjects}
        sys.stdout.writelines(f"{place}: {name}\n" for name, place in places.items())
        sys.exit(not all(place.endswith(".py") for place in places.values()))
    rows = measure(subjects, files, arguments.workers)
    killed = {subject: [row["outcome"] == "killed" for row in rows if row["subject"] == subject] for subject in TESTS}
    share = sum(map(sum, killed.values())) / len(rows)
    result = {
        "command": " ".join(["python", "benchmarks/mutants.py", *sys.argv[1:]]),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in ("pytest", "torch")}},
        "mutants": len(rows),
        "killed": sum(map(sum, killed.values())),
        "share": round(share, 3),
        "subjects": {
            subject: {"mutants": len(each), "killed": sum(each), "tests": TESTS[subject]}
            for subject, each in killed.items()
        },
        "rows": rows,
    }
    if arguments.only is None:
        path = ROOT / "benchmarks" / "results" / "mutants.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = ["| subject | mutant | outcome | by |", "|---|---|---|---|"]
    lines += [f"| {row['subject']} | {row['name']} | {row['outcome']} | {row['by']} |" for row in rows]
    lines += ["", *(f"{subject}: {sum(each)} of {len(each)}" for subject, each in killed.items() if each)]
    lines += [f"killed {result['killed']} of {len(rows)} ({share:.0%})"]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(share < arguments.threshold)


if __name__ == "__main__":
    main()
