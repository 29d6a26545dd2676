"""The ``unoise`` command, and those of its commands that are short."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from unoise_monai.cli import Exit, explain, fit

# As the package names them, whose import takes seconds; a test compares the two.
PICTURES = ("montage", "mip", "rotation")
STYLES = ("colour", "red")
KINDS = ("abdomen", "vessels")


def add_report(subparsers: Any) -> None:
    """The options of ``unoise report``."""
    command = subparsers.add_parser(
        "report",
        help="make pages of a cohort's results",
        description="Write OUTPUT/report: a table of cases, a page a case, and a 3-D viewer; open its index.html.",
    )
    command.add_argument("output", metavar="OUTPUT", type=Path, help="what `unoise explain` has written")
    command.add_argument("--input", metavar="INPUT", help="of `unoise explain`, to show the scans beneath the maps")
    command.add_argument("--key", type=Path, metavar="FILE", help="that `unoise explain --anonymise` has used")
    command.add_argument("--no-viewer", dest="viewer", action="store_false", help="pictures and tables only")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write a cohort's results as pages; a `FileNotFoundError` where OUTPUT holds none, a `CaseError` of the input."""
    from unoise_monai.data.cases import read_key
    from unoise_monai.data.finding import find_cases
    from unoise_monai.report.site import write_site

    key = None if args.key is None else read_key(args.key, make=False)
    # The viewer alone shows scans.
    cases = find_cases(args.input, None, None, key) if args.input and args.viewer else []
    scans = {case.name: case.files if case.series else case.files[0] for case in cases if not case.problem}
    index = write_site(args.output, scans, viewer=args.viewer, progress=not args.quiet)
    sys.stdout.write(f"{index}\n")
    return Exit.DONE


def add_render(subparsers: Any) -> None:
    """The options of ``unoise render``."""
    command = subparsers.add_parser(
        "render",
        help="draw a map over its scan",
        description="Draw projections, slices or a turning projection of a map over its scan, by the suffix of OUTPUT.",
    )
    command.add_argument("scan", metavar="SCAN", type=Path, help="the scan's file")
    command.add_argument("importance", metavar="MAP", type=Path, help="a map on the scan's grid")
    command.add_argument("output", metavar="OUTPUT", type=Path, help="a .png, or a .gif for --picture rotation")
    command.add_argument("--segmentation", type=Path, metavar="FILE", help="class indices, outlined")
    command.add_argument("--picture", default="montage", choices=PICTURES, help="%(default)s by default")
    command.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white")
    command.add_argument("--style", default="colour", choices=STYLES, help="%(default)s by default")
    command.add_argument("--threshold", type=float, default=0.1, help="below, the scan alone (%(default)s)")
    command.add_argument("--scale", action="store_true", help="to the map's 99.9th percentile, for maps beyond 0 to 1")
    command.set_defaults(run=run_render)


def run_render(args: argparse.Namespace) -> int:
    """Draw a map over its scan; a `ValueError` for one of another grid or, without ``--scale``, beyond 0 to 1."""
    suffix = ".gif" if args.picture == "rotation" else ".png"
    if args.output.suffix.lower() != suffix:
        raise ValueError(f"OUTPUT must end in {suffix} for {args.picture}, got {args.output.name}")

    from unoise_monai.data.reading import load_volume
    from unoise_monai.handlers.savers import PICTURES, label_voxels, on_scan_grid, to_numpy
    from unoise_monai.render.canvas import display_scale, to_canonical

    scan, importance = load_volume(args.scan)[None], load_volume(args.importance)[None]
    image, spacing_mm = to_canonical(*to_numpy(scan))
    voxels = on_scan_grid(to_numpy(importance)[0], importance, scan, "MAP", args.scan)
    outline = None
    if args.segmentation is not None:
        segmentation = load_volume(args.segmentation)[None]
        labels = label_voxels(segmentation, "--segmentation")
        outline = on_scan_grid(labels, segmentation, scan, "--segmentation", args.scan)
    picture = PICTURES[args.picture]
    window = None if args.window is None else tuple(args.window)
    options = {"window": window, "style": args.style, "threshold": args.threshold}
    shown = display_scale(voxels) if args.scale else voxels
    picture.save(picture.draw(image, spacing_mm, importance=shown, segmentation=outline, **options), args.output)
    return Exit.DONE


def add_phantom(subparsers: Any) -> None:
    """The options of ``unoise phantom``."""
    command = subparsers.add_parser(
        "phantom",
        help="write synthetic scans",
        description="Write synthetic scans, their labels and their truth maps as a Decathlon folder.",
    )
    command.add_argument("root", metavar="ROOT", type=Path, help="folder to write to")
    command.add_argument("--count", type=int, required=True, help="labelled scans")
    command.add_argument("--test_count", "--test-count", type=int, default=0, help="unlabelled ones (%(default)s)")
    command.add_argument("--kind", default="abdomen", choices=KINDS, help="%(default)s by default")
    command.add_argument("--seed", type=int, default=0, help="%(default)s by default")
    command.add_argument("--size", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels (the kind's own)")
    command.add_argument("--spacing_mm", "--spacing-mm", type=float, nargs=3, metavar=("X", "Y", "Z"), help="mm")
    command.add_argument("--oblique_degrees", "--oblique-degrees", type=float, default=0.0, help="turn of the grid")
    command.add_argument("--left_handed", "--left-handed", action="store_true", help="flip the first voxel axis")
    command.add_argument("--noise", type=float, help="standard deviation, in the image's unit (the kind's own)")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.set_defaults(run=run_phantom)


def run_phantom(args: argparse.Namespace) -> int:
    """Write synthetic scans as a Decathlon folder."""
    from unoise_monai.phantoms.cohort import write_phantom_cohort

    options = {name: value for name, value in vars(args).items() if name not in ("command", "run", "quiet")}
    write_phantom_cohort(**options, progress=not args.quiet)
    return Exit.DONE


def add_doctor(subparsers: Any) -> None:
    """The options of ``unoise doctor``."""
    command = subparsers.add_parser(
        "doctor",
        help="say what is installed and try a small volume",
        description="Say what is installed, which device and which bundles there are, and try one small volume.",
    )
    command.add_argument("bundles", nargs="*", metavar="BUNDLE", help="names or folders (all that are known by name)")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Say what is installed, and whether it works; see `Exit`."""
    from unoise_monai.bundle import find_bundle
    from unoise_monai.report.doctor import diagnose

    diagnosis = diagnose([find_bundle(name) for name in args.bundles] or None)
    text = json.dumps(diagnosis.as_dict(), indent=1) if args.json else "\n".join(diagnosis.lines)
    sys.stdout.write(f"{text}\n")
    return Exit.DONE if diagnosis.ok else Exit.ERROR


def add_bundles(subparsers: Any) -> None:
    """The options of ``unoise bundles``."""
    command = subparsers.add_parser(
        "bundles",
        help="list bundles, make a new one, or verify one",
        description="List the bundles that go by their name, copy one's configurations for other data, or verify that "
        "one is what MONAI's model zoo asks for.",
        usage="unoise bundles [-h] [copy BUNDLE FOLDER [--task YAML] | verify FOLDER [--schema JSON] [--trust-bundle]]",
    )
    words = "copy: make FOLDER from BUNDLE, untrained; verify: a line a check, exit status 1 where one fails"
    command.add_argument("words", nargs="*", metavar="WORD", help=words)
    command.add_argument("--task", type=Path, metavar="YAML", help="a copy's task: labels, spacing, intensities")
    command.add_argument("--schema", type=Path, metavar="JSON", help="a file of the schema that the metadata name")
    command.add_argument("--trust-bundle", action="store_true", help="run a bundle's configuration that is not known")
    command.set_defaults(run=run_bundles)


def run_bundles(args: argparse.Namespace) -> int:
    """List the known bundles, make one, or verify one.

    Raises:
        ValueError: when the words are neither ``copy BUNDLE FOLDER`` nor ``verify FOLDER``, or the task is none.
        UntrustedBundle: when the bundle to verify is not trusted.
        FileNotFoundError: when it or the schema is not there.
    """
    import yaml

    from unoise_monai.bundle import copy_bundle, known_bundles

    match args.words:
        case []:
            sys.stdout.writelines(f"{name}\t{folder}\n" for name, folder in known_bundles().items())
        case ["copy", source, target]:
            task = None
            if args.task is not None:
                task = yaml.safe_load(args.task.read_text(encoding="utf-8"))
                if not isinstance(task, dict):
                    raise ValueError(f"--task must hold a mapping, got {type(task).__name__}")
            sys.stdout.write(f"{copy_bundle(source, target, task)}\n")
        case ["verify", folder]:
            from unoise_monai.report.verify import verify

            diagnosis = verify(known_bundles().get(folder, Path(folder)), args.trust_bundle, args.schema)
            sys.stdout.writelines(f"{line}\n" for line in diagnosis.lines)
            return Exit.DONE if diagnosis.ok else Exit.ERROR
        case words:
            raise ValueError(f"bundles takes nothing, or copy BUNDLE FOLDER, or verify FOLDER, got {' '.join(words)}")
    return Exit.DONE


class _Version(argparse.Action):
    """Looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"unoise-monai {version('unoise-monai')}\n")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line, with the help of each command."""
    top = argparse.ArgumentParser(
        prog="unoise",
        description="Which voxels a 3D segmentation network relies on, for one scan or a whole cohort.",
        epilog="exit status: " + "; ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Exit),
    )
    top.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    explain.add_explain(subparsers)
    for add in (fit.add_fit, fit.add_evaluate, add_report, add_render, add_phantom, add_doctor, add_bundles):
        add(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status, see `Exit`."""
    # As a Ctrl-C, so that what is half-written is put away; clusters send it when time is up.
    signal.signal(signal.SIGTERM, _interrupt)
    top = parser()
    # Set by the shell when it asks for completions, which argcomplete prints before it ends the process.
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top)
    args = top.parse_args(arguments)
    # Lines of the log and of progress have one place, whoever configured the log before.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return _fail("interrupted; what is done is kept, start again to go on", Exit.INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        code = exit_of(error)
        if code is None:
            raise
        return _fail(error, code)


def exit_of(error: Exception) -> Exit | None:
    """The exit status that an error of a command means; None where nobody expected it."""
    from unoise_monai.runs.records import OutputFault, OutputInUse
    from unoise_monai.runs.settings import OtherSettings

    if isinstance(error, OutputInUse | OtherSettings):
        return Exit.REFUSED
    if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | PermissionError):
        return Exit.USAGE
    return Exit.ERROR if isinstance(error, OutputFault | OSError) else None


def _fail(message: object, code: Exit) -> Exit:
    sys.stderr.write(f"unoise: {message}\n")
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
