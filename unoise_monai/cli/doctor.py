"""``unoise doctor``: what is installed, and whether it works."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from unoise_monai.bundle import find_bundle
from unoise_monai.cli.codes import Exit
from unoise_monai.report.doctor import diagnose


def add(commands: Any) -> None:
    """The command's options."""
    command = commands.add_parser(
        "doctor",
        help="say what is installed and try a small volume",
        description="Say what is installed, which device and which bundles there are, and try one small volume.",
    )
    command.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="names or folders (all that come with the project)"
    )
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Tell; see `Exit`."""
    diagnosis = diagnose([find_bundle(name) for name in chosen.bundles] or None)
    text = json.dumps(diagnosis.as_dict(), indent=1) if chosen.json else "\n".join(diagnosis.lines)
    sys.stdout.write(f"{text}\n")
    return Exit.DONE if diagnosis.ok else Exit.ERROR
