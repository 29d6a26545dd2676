"""The options of ``unoise explain``, after the habits of TotalSegmentator and nnU-Net."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unoise_monai.handlers.savers import QUANTITIES
from unoise_monai.inference.precision import PRECISIONS
from unoise_monai.runs.settings import METHODS

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


def add_explain(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``unoise explain``."""
    command: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="explain the segmentation of a scan or a cohort",
        description="Write importance and segmentation of every volume, with pictures and tables.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's name or folder (`unoise doctor` lists them)")
    command.add_argument(
        "input",
        metavar="INPUT",
        help="a file, a folder, a glob in quotes, a Decathlon folder, a CSV with columns case and image (label, "
        "organs), or DICOM series",
    )
    command.add_argument("output", metavar="OUTPUT", type=Path, help="folder for the results")
    what = command.add_argument_group("what is written")
    what.add_argument("--quantity", default="importance", choices=QUANTITIES, help="of the map (%(default)s)")
    what.add_argument("--methods", default="", metavar="A,B", help=f"attribution maps beside it: {', '.join(METHODS)}")
    what.add_argument("--no-images", dest="images", action="store_false", help="write no pictures")
    what.add_argument("--labels", type=Path, metavar="PATH", help="labels, <case>.nii.gz in a folder, for Dice")
    what.add_argument("--organs", type=Path, metavar="PATH", help="organ maps likewise; organs.json beside names them")
    what.add_argument("--anonymise", action="store_true", help="name cases by a keyed hash, and no files in tables")
    what.add_argument("--key", type=Path, metavar="FILE", help="the key of --anonymise (OUTPUT.key, made when missing)")
    how = command.add_argument_group("how it runs")
    how.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto takes a GPU where there is one")
    how.add_argument("--fast", action="store_true", help="on a grid 1.25 times as coarse: quicker, less exact")
    how.add_argument("--precision", default="auto", choices=PRECISIONS, help="number format (%(default)s)")
    how.add_argument("--memory-gb", type=float, metavar="GB", help="for a pass (80%% of the free GPU, half the RAM)")
    how.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that read ahead (%(default)s); 0 for none"
    )
    how.add_argument("--timeout", type=float, default=900.0, metavar="S", help="for reading one case (%(default)s)")
    how.add_argument("--part", type=_part, metavar="K/N", help="do part K of N; parts may share an output")
    how.add_argument("--engine", default="local", choices=("local", "ray"), help="where cases run (%(default)s)")
    how.add_argument("--address", metavar="A", help="of the Ray cluster; auto finds a running one")
    how.add_argument(
        "--gpus", type=float, metavar="G", help="share of a GPU that a Ray worker takes (1 if there are any)"
    )
    how.add_argument("--overwrite", action="store_true", help="do all again, also over results of other settings")
    how.add_argument("--dry-run", action="store_true", help="list the cases and their files, do nothing")
    how.add_argument("--weights", type=Path, metavar="FILE", help="instead of the bundle's: .pt or .safetensors")
    how.add_argument("--trust-bundle", action="store_true", help="run a bundle's configuration that is not known")
    how.add_argument("--quiet", action="store_true", help="tell failures only")
    how.add_argument("--json", action="store_true", help="tell the result as JSON on standard output")
    return command


def _part(text: str) -> tuple[int, int]:
    try:
        k, n = map(int, text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be K/N, such as 2/8, got {text!r}") from error
    return k, n
