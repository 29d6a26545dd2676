"""``unoise``: explain cohorts and what belongs to it, from a shell."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from unoise_monai.cli import doctor, explain, phantom, render, report
from unoise_monai.cli.codes import Exit
from unoise_monai.runs.records import OutputInUse
from unoise_monai.runs.settings import OtherSettings, OutputFault

COMMANDS = (explain, report, render, phantom, doctor)


def parser() -> argparse.ArgumentParser:
    """The command line, with the help of each command."""
    top = argparse.ArgumentParser(
        prog="unoise",
        description="Which voxels a 3D segmentation network relies on, for one scan or a whole cohort.",
        epilog="exit status: " + "; ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Exit),
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status, see `Exit`."""
    # As a Ctrl-C, so that what is half-written is put away; clusters send it when time is up.
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = parser().parse_args(arguments)
    # Lines of the log and of progress have one place, whoever configured the log before.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return int(chosen.run(chosen))
    except (OutputInUse, OtherSettings) as error:
        return _told(error, Exit.REFUSED)
    except OutputFault as error:
        return _told(error, Exit.ERROR)
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        return _told(error, Exit.USAGE)
    except OSError as error:
        return _told(error, Exit.ERROR)
    except KeyboardInterrupt:
        return _told("interrupted; what is done is kept, start again to go on", Exit.INTERRUPTED)


def _told(error: object, code: Exit) -> Exit:
    sys.stderr.write(f"unoise: {error}\n")
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
