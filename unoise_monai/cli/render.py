"""``unoise render``: an importance map over its scan, as pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai.transforms import LoadImage

from unoise_monai.cli.codes import Exit
from unoise_monai.handlers.savers import PICTURES, label_voxels, on_scan_grid, to_numpy
from unoise_monai.render.canvas import STYLES, save_png, to_canonical
from unoise_monai.render.rotation import save_animation
from unoise_monai.runs.comparison import shares


def add(commands: Any) -> None:
    """The command's options."""
    command = commands.add_parser(
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
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Draw it.

    Raises:
        ValueError: when OUTPUT has the wrong suffix, or the map is not on the scan's grid or, without ``--scale``, not
            within 0 and 1.
    """
    suffix = ".gif" if chosen.picture == "rotation" else ".png"
    if chosen.output.suffix.lower() != suffix:
        raise ValueError(f"OUTPUT must end in {suffix} for {chosen.picture}, got {chosen.output.name}")
    load = LoadImage(image_only=True, ensure_channel_first=True)
    scan, importance = load(chosen.scan), load(chosen.importance)
    image, spacing_mm = to_canonical(*to_numpy(scan))
    voxels = on_scan_grid(to_numpy(importance)[0], importance, scan, "MAP", chosen.scan)
    outline = None
    if chosen.segmentation is not None:
        segmentation = load(chosen.segmentation)
        outline = on_scan_grid(
            label_voxels(segmentation, "--segmentation"), segmentation, scan, "--segmentation", chosen.scan
        )
    rgb = PICTURES[chosen.picture](
        image,
        spacing_mm,
        importance=shares(voxels) if chosen.scale else voxels,
        segmentation=outline,
        window=None if chosen.window is None else tuple(chosen.window),
        style=chosen.style,
        threshold=chosen.threshold,
    )
    save = save_animation if chosen.picture == "rotation" else save_png
    save(rgb, chosen.output)
    return Exit.DONE
