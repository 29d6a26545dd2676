"""``unoise report``: a cohort's results as pages that open from disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from unoise_monai.cli.codes import Exit
from unoise_monai.data.cases import CohortCase, read_key
from unoise_monai.data.dicom import volume_file
from unoise_monai.data.finding import find_cohort
from unoise_monai.report.site import write_site

ONE_AT_A_TIME = Lock()


def add(commands: Any) -> None:
    """The command's options."""
    command = commands.add_parser(
        "report",
        help="make pages of a cohort's results",
        description="Write OUTPUT/report: a table of cases, a page a case, and a 3-D viewer; open its index.html.",
    )
    command.add_argument("output", metavar="OUTPUT", type=Path, help="what `unoise explain` has written")
    command.add_argument("--input", metavar="INPUT", help="of `unoise explain`, to show the scans beneath the maps")
    command.add_argument("--key", type=Path, metavar="FILE", help="that `unoise explain --anonymise` has used")
    command.add_argument("--no-viewer", dest="viewer", action="store_false", help="pictures and tables only")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Write it.

    Raises:
        FileNotFoundError: when OUTPUT holds no results.
        CaseError: when there is nothing in INPUT, or no key in its file.
    """
    key = None if chosen.key is None else read_key(chosen.key, make=False)
    # The viewer alone shows scans.
    cases = find_cohort(chosen.input, None, None, key) if chosen.input and chosen.viewer else []
    scans = {case.name: scan_of(case) for case in cases}
    index = write_site(chosen.output, scans, viewer=chosen.viewer, progress=not chosen.quiet)
    sys.stdout.write(f"{index}\n")
    return Exit.DONE


def scan_of(case: CohortCase) -> Callable[[Path], Path]:
    """Makes a case's volume in a folder, where it is a DICOM series, when the report asks for it."""

    def make(folder: Path) -> Path:
        # Whether ITK writes warnings, which name files, is a setting of the whole process.
        with ONE_AT_A_TIME:
            return volume_file(case, folder)

    return make
