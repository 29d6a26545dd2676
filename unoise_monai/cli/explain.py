"""``unoise explain``: every volume of an input, explained. Options after the habits of TotalSegmentator and nnU-Net."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unoise_monai.cli import Exit

if TYPE_CHECKING:
    from unoise_monai.bundle import Bundle
    from unoise_monai.data.cases import Case
    from unoise_monai.runs.ray_engine import RayEngine
    from unoise_monai.runs.run import Summary
    from unoise_monai.runs.settings import Comparison, Settings

# As the package names them, whose import takes seconds; a test compares the two.
QUANTITIES = ("importance", "tolerance", "sigma", "logit", "percentile")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

FAST = 1.25
"""How many times as coarse the grid of a fast run is: half of the voxels. At 1.5, networks of small structures fail."""

EPILOG = """\
examples:
  unoise explain hippocampus_mr_unoise scan.nii.gz out
  unoise explain hippocampus_mr_unoise data/Task04_Hippocampus out      a Decathlon folder, with Dice
  unoise explain pancreas_ct_unoise 'scans/*/ct.nii.gz' out --organs organs --methods saliency,deep_lift
  unoise explain pancreas_ct_unoise pacs_export out --anonymise --fast  DICOM, split by series
  unoise explain pancreas_ct_unoise cohort.csv out --part $SLURM_ARRAY_TASK_ID/8

The output holds OUTPUT/<case>/<case>_importance.nii.gz, _seg.nii.gz, _mip.png and _montage.png, and cohort.csv,
failures.csv and run.json. Started again, it goes on with what is missing. Why a bundle has to be trusted: its
configuration can run any code as you; those of this project are, others need --trust-bundle or a line in
~/.config/unoise/trusted_bundles."""


class _Methods(argparse.Action):
    """Takes methods as they are, and lists those that there are, with their options, for ``help``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: object) -> None:
        if values != "help":
            setattr(namespace, self.dest, values)
            return
        from unoise_monai.attribution.base import METHODS
        from unoise_monai.runs.settings import options_of

        # Saliency has the options that every method has, and no others.
        shared = options_of("saliency")
        # What needs a region has none in a run over a cohort, which explains all that is segmented.
        methods = {name: method for name, method in METHODS.items() if "region" not in method.needs}
        width = max(map(len, methods))
        for name, method in methods.items():
            sys.stdout.write(f"{name:{width}}  {(method.__doc__ or '').strip().splitlines()[0]}\n")
            if own := _written([option for key, option in options_of(name).items() if key not in shared]):
                sys.stdout.write(f"{'':{width}}  {own}\n")
        sys.stdout.write(f"\nof every method: {_written(shared.values())}\nNAME:option=value:option=value sets them\n")
        parser.exit()


def _written(options: Iterable[inspect.Parameter]) -> str:
    """Options that can be typed, as they would be."""
    from unoise_monai.runs.settings import takes

    typed = [option for option in options if takes(option, bool, int, float, str, list, dict)]
    # YAML, without spaces, which a shell would split.
    values = [json.dumps(option.default, separators=(",", ":")).replace('"', "") for option in typed]
    return " ".join(f"{option.name}={value}" for option, value in zip(typed, values, strict=True))


def add_explain(subparsers: Any) -> None:
    """The options of ``unoise explain``."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "explain",
        help="explain the segmentation of a scan or a cohort",
        description="Write importance and segmentation of every volume, with pictures and tables.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's name or folder (`unoise doctor` lists them)")
    kinds = "a file, a folder, a glob in quotes, a Decathlon folder, a CSV with columns case and image (label, organs)"
    command.add_argument("input", metavar="INPUT", help=f"{kinds}, or DICOM series")
    command.add_argument("output", metavar="OUTPUT", type=Path, help="folder for the results")
    what = command.add_argument_group("what is written")
    what.add_argument("--quantity", choices=QUANTITIES, help="of the map (as the bundle says)")
    methods = "attribution maps beside it, with options; `help` lists them"
    what.add_argument("--methods", default="", metavar="A,B:option=1", action=_Methods, help=methods)
    what.add_argument("--scores", action="store_true", help="score maps, rank methods: the bundle's explain.yaml")
    what.add_argument("--no-images", dest="images", action="store_false", help="write no pictures")
    what.add_argument("--labels", type=Path, metavar="PATH", help="labels, <case>.nii.gz in a folder, for Dice")
    what.add_argument("--organs", type=Path, metavar="PATH", help="organ maps likewise; organs.json beside names them")
    what.add_argument("--anonymise", action="store_true", help="name cases by a keyed hash, and no files in tables")
    what.add_argument("--key", type=Path, metavar="FILE", help="the key of --anonymise (OUTPUT.key, made when missing)")
    how = command.add_argument_group("how it runs")
    how.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto takes a GPU where there is one")
    how.add_argument("--fast", action="store_true", help="on a grid 1.25 times as coarse: quicker, less exact")
    how.add_argument("--precision", choices=PRECISIONS, help="number format (as the bundle says)")
    how.add_argument("--memory-gb", type=float, metavar="GB", help="for a pass (80%% of the free GPU, half the RAM)")
    how.add_argument("--workers", type=int, default=1, metavar="N", help="processes to read ahead, or 0 (%(default)s)")
    how.add_argument("--timeout", type=float, default=900.0, metavar="S", help="for reading one case (%(default)s)")
    how.add_argument("--part", type=_part, metavar="K/N", help="do part K of N; parts may share an output")
    how.add_argument("--engine", default="local", choices=("local", "ray"), help="where cases run (%(default)s)")
    how.add_argument("--address", metavar="A", help="of the Ray cluster; auto finds a running one")
    how.add_argument("--gpus", type=float, metavar="G", help="GPUs that a Ray worker takes, or a share of one (1 or 0)")
    how.add_argument("--overwrite", action="store_true", help="do all again, also over results of other settings")
    how.add_argument("--dry-run", action="store_true", help="list the cases and their files, do nothing")
    how.add_argument("--weights", type=Path, metavar="FILE", help="instead of the bundle's: .pt or .safetensors")
    how.add_argument("--trust-bundle", action="store_true", help="run a bundle's configuration that is not known")
    how.add_argument("--quiet", action="store_true", help="tell failures only")
    how.add_argument("--json", action="store_true", help="tell the result as JSON on standard output")
    command.set_defaults(run=run_explain)


def _part(text: str) -> tuple[int, int]:
    try:
        k, n = map(int, text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be K/N, such as 2/8, got {text!r}") from error
    return k, n


def run_explain(args: argparse.Namespace) -> int:
    """Explain every volume of the input; see `Exit`."""
    if args.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {args.workers}")
    if Path(args.input).resolve() == args.output.resolve():
        raise ValueError(f"OUTPUT must be another folder than INPUT, got {args.output} for both")

    from unoise_monai.data.cases import read_key
    from unoise_monai.data.finding import find_cases
    from unoise_monai.runs.run import explain_cases, part_of
    from unoise_monai.runs.settings import Comparison, OtherSettings, find_device, parse_methods, settings_of

    methods, chosen = parse_methods(args.methods)
    key = read_key(args.key or args.output.with_name(f"{args.output.name}.key")) if args.anonymise else None
    if args.part is not None:
        part_of([], args.part)
    cases = find_cases(args.input, args.labels, args.organs, key)
    if args.dry_run:
        _list(part_of(cases, args.part), args.json)
        return Exit.DONE
    # Workers of a cluster find their own device; here the bundle is asked for its settings only.
    remote = args.engine != "local"
    bundle, changes = load(args, "cpu" if remote else str(find_device(args.device)))
    settings = settings_of(bundle, changes, args.anonymise, remote)
    comparison = bundle.parsed("comparison") if args.scores else Comparison()
    # Over the bundle's own, option by option.
    options = {**comparison.options, **{name: {**comparison.options.get(name, {}), **chosen[name]} for name in chosen}}
    comparison = replace(comparison, methods=methods or comparison.methods, options=options)
    engine = ray_engine(args, changes, settings, comparison) if remote else None
    try:
        running = {name: getattr(args, name) for name in ("part", "overwrite", "workers", "timeout", "quiet")}
        command = command_line(args)
        summary = explain_cases(
            cases, bundle, settings, args.output, comparison, command=command, engine=engine, **running
        )
    except OtherSettings:
        raise
    except ValueError as error:
        # All that was asked for has been checked: what is wrong now is wrong here.
        raise RuntimeError(f"unexpected: {error}") from error
    _summarise(summary, args)
    return Exit.SOME_FAILED if summary.failed else Exit.DONE


def load(args: argparse.Namespace, device: str) -> tuple[Bundle, dict[str, Any]]:
    """The bundle, and the values of its configuration that options change; a `ValueError` where it lacks one."""
    from unoise_monai.bundle import load_bundle

    values = {name: getattr(args, name) for name in ("quantity", "precision", "memory_gb")}
    changes: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if not args.images:
        changes["pictures"] = []
    overlays = ("explain",) if args.scores else ()
    options = (args.bundle, device, args.weights, args.trust_bundle, changes, overlays)
    bundle = load_bundle(*options)
    if args.fast:
        if bundle.task is None:
            raise ValueError(f"--fast needs a bundle with a task, whose grid it makes coarser, got {bundle.name}")
        changes["task#spacing_mm"] = [FAST * side for side in bundle.task.spacing_mm]
        bundle = load_bundle(*options)
    return bundle, changes


def ray_engine(
    args: argparse.Namespace, changes: dict[str, Any], settings: Settings, comparison: Comparison
) -> RayEngine:
    """Runs the cases on a Ray cluster, whose workers see the same files."""
    from unoise_monai.bundle import find_bundle
    from unoise_monai.runs.ray_engine import RayEngine, Work

    work = Work(
        bundle=find_bundle(args.bundle).resolve(),
        weights=None if args.weights is None else args.weights.resolve(),
        trusted=args.trust_bundle,
        changes=changes,
        overlays=("explain",) if args.scores else (),
        settings=settings,
        comparison=comparison,
        output=args.output.resolve(),
        device=args.device,
        timeout=args.timeout,
    )
    return RayEngine(work, args.address, args.gpus)


def command_line(args: argparse.Namespace) -> str:
    """The command for ``run.json``: paths, which may name patients, are left out."""
    flags = ("fast", "scores", "anonymise", "overwrite")
    words = [f"--{name}" for name in flags if getattr(args, name)]
    words += [] if args.images else ["--no-images"]
    words += [f"--{name} PATH" for name in ("labels", "organs", "weights") if getattr(args, name)]
    values = ("quantity", "precision", "device", "engine", "methods")
    words += [f"--{name} {getattr(args, name)}" for name in values if getattr(args, name)]
    return " ".join(["unoise explain BUNDLE INPUT OUTPUT", *words])


def _summarise(summary: Summary, args: argparse.Namespace) -> None:
    if args.json:
        sys.stdout.write(json.dumps({**asdict(summary), "output": str(args.output)}) + "\n")
    elif not args.quiet:
        counts = f"{summary.done} done, {summary.kept} were there, {summary.failed} failed, of {summary.cases} cases"
        failures = f"; see {args.output / 'failures.csv'}" if summary.failed else ""
        sys.stderr.write(f"{counts}{failures}\n")


def _list(cases: Sequence[Case], as_json: bool) -> None:
    """To standard output alone: these are the only lines that say which file is which case."""
    if as_json:
        keys = ("files", "problem", "label", "organs")
        rows = [{"case": case.name, **{key: getattr(case, key) for key in keys}} for case in cases]
        sys.stdout.write(json.dumps(rows, indent=1, default=str) + "\n")
        return
    for case in cases:
        more = f" and {len(case.files) - 1} more" if len(case.files) > 1 else ""
        sys.stdout.write(f"{case.name}\t{case.problem or f'{case.files[0]}{more}'}\n")
