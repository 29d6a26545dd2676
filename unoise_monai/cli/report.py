"""``unoise report``: a cohort's results as pages that open from disk."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from unoise_monai.cli.codes import Exit
from unoise_monai.cohort.dicom import volume_file
from unoise_monai.cohort.inputs import find_cohort
from unoise_monai.cohort.names import read_key
from unoise_monai.data import CaseError
from unoise_monai.report.site import write_site


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
        CaseError: when there is nothing in INPUT.
    """
    key = None if chosen.key is None else read_key(chosen.key)
    cases = find_cohort(chosen.input, None, None, key) if chosen.input else []
    with tempfile.TemporaryDirectory(prefix="unoise-") as folder:
        scans = {}
        for case in cases:
            try:
                scans[case.name] = volume_file(case, Path(folder))
            except CaseError as error:
                sys.stderr.write(f"{case.name}: shown without its scan: {error}\n")
        index = write_site(chosen.output, scans or None, viewer=chosen.viewer, progress=not chosen.quiet)
    sys.stdout.write(f"{index}\n")
    return Exit.DONE
