"""``unoise``: explain cohorts and what belongs to it, from a shell."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from unoise_monai.cli import Exit, commands, explain


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
    commands.add_report(subparsers)
    commands.add_render(subparsers)
    commands.add_phantom(subparsers)
    commands.add_doctor(subparsers)
    commands.add_bundles(subparsers)
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
