"""``unoise phantom``: synthetic scans as a Decathlon folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unoise_monai.cli.codes import Exit
from unoise_monai.phantoms.cohort import KINDS, write_phantom_cohort


def add(commands: Any) -> None:
    """The command's options."""
    command = commands.add_parser(
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
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Write them."""
    options = {name: value for name, value in vars(chosen).items() if name not in ("command", "run", "quiet")}
    write_phantom_cohort(**options, progress=not chosen.quiet)
    return Exit.DONE
