"""Writes what stays of Dice when only the important voxels are visible: table, plot, pictures."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_fraction
from unoise_monai.data.reading import case_name
from unoise_monai.handlers.savers import to_numpy
from unoise_monai.metrics.visibility import VisibilityCurve
from unoise_monai.render.canvas import save_png, to_canonical
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.slices import DECILES, PAPER_THRESHOLDS, decile_pictures

logger = logging.getLogger(__name__)

QUOTED_SHARES = (0.1, 0.2, 0.3, 0.5)
SMALL_SHARES = (0.01, 0.02, 0.05)
"""Quoted only where they were measured: structures as small as vessels need them."""


class VisibilityReport:
    """Write the visibility curves of an evaluation, and pictures of single volumes: an ignite handler.

    ``<curve>.csv`` with one row a level, ``visibility.png`` with all curves (Koker et al., "U-Noise", 2021, Fig. 3a),
    ``evaluation.json`` with the numbers to quote, and for the first volumes ``<case>_deciles.png`` and
    ``<case>_thresholds.png`` (Fig. 3b).

    Args:
        output_dir: folder for all of these.
        curves: names of the engine's metrics that are a `VisibilityCurve`.
        class_names: of the task, background first; they name the columns.
        pictures: how many volumes get pictures.
        mip: show maximum intensity projections in place of the most important slice, which hardly shows vessels.
        picture_shares: shares of the voxels that the deciles' picture shows; small structures need small ones.

    Raises:
        ValueError: when ``pictures`` is below 0, or a share is not above 0 and at most 1.
    """

    def __init__(
        self,
        output_dir: str | Path,
        curves: Sequence[str],
        class_names: Sequence[str],
        pictures: int = 2,
        mip: bool = False,
        picture_shares: Sequence[float] = DECILES,
    ) -> None:
        if pictures < 0:
            raise ValueError(f"pictures must be at least 0, got {pictures}")
        for share in picture_shares:
            check_fraction("picture_shares", share)
        self.output_dir, self.curves, self.class_names = Path(output_dir), tuple(curves), tuple(class_names)
        self.pictures, self.mip, self.picture_shares = pictures, mip, tuple(picture_shares)
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Begin anew with the pictures."""
        self._drawn = 0

    def draw(self, engine: Engine) -> None:
        """Draw the volumes of a batch, as long as there are pictures to make."""
        output, left = engine.state.output, self.pictures - self._drawn
        if left == 0:
            return
        images, maps = decollate_batch(output["image"]), decollate_batch(output["pred"][:, -1:])
        for image, importance in list(zip(images, maps, strict=True))[:left]:
            self._drawn += 1
            case = image.meta.get("case") or case_name(image.meta["filename_or_obj"])
            grey, spacing_mm = to_canonical(*to_numpy(image[:1]))
            values, _ = to_canonical(*to_numpy(importance))
            rgb = decile_pictures(grey, values, spacing_mm, shares=self.picture_shares, mip=self.mip)
            save_png(rgb, self.output_dir / f"{case}_deciles.png")
            rgb = decile_pictures(grey, values, spacing_mm, thresholds=PAPER_THRESHOLDS, mip=self.mip)
            save_png(rgb, self.output_dir / f"{case}_thresholds.png")

    def write(self, engine: Engine) -> None:
        """Write the tables, the plot and the numbers to quote."""
        curves = {name: engine.state.metrics[name] for name in self.curves}
        for name, curve in curves.items():
            write_curve(curve, self.class_names[1:], self.output_dir / f"{name}.csv")
        # Where no label has any foreground there is no Dice to draw.
        drawn = {name: curve for name, curve in curves.items() if bool(curve.mean_score.isfinite().all())}
        if drawn:
            points = {name: (curve.share.numpy(), curve.mean_score.numpy()) for name, curve in drawn.items()}
            full = next((curve.at(1.0) for curve in drawn.values() if shows_all(curve)), None)
            save_png(plot_visibility(points, reference=full), self.output_dir / "visibility.png")
        summary = {name: quoted(curve, self.class_names[1:]) for name, curve in curves.items()}
        with atomic_path(self.output_dir / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        for name, values in summary.items():
            logger.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in values.items()))


def quoted(curve: VisibilityCurve, classes: Sequence[str]) -> dict[str, float | None]:
    """The numbers to quote of a curve: Dice at fixed shares, the area, each class's Dice with all visible."""
    small = [share for share in SMALL_SHARES if np.isclose(curve.share, share, rtol=0.02).any()]
    values = {f"dice_at_{share:.0%}": curve.at(share) for share in (*small, *QUOTED_SHARES)}
    values["area"] = curve.area
    if shows_all(curve):
        last = curve.score[curve.share.argmax()]
        values |= {f"dice_all_visible_{name}": float(last[column]) for column, name in enumerate(classes)}
    # JSON has no NaN, which is the Dice of a class that no volume has.
    return {key: round(value, 4) if math.isfinite(value) else None for key, value in values.items()}


def shows_all(curve: VisibilityCurve) -> bool:
    """Whether the curve was measured with every voxel visible."""
    return float(curve.share.max()) == 1.0


def write_curve(curve: VisibilityCurve, classes: Sequence[str], path: Path) -> None:
    """One row a level: level, share visible, mean Dice, Dice of every class."""
    columns = ["level", "share_visible", "dice_mean", *(f"dice_{name}" for name in classes)]
    rows = torch.column_stack([curve.level, curve.share, curve.mean_score, curve.score])
    with atomic_path(path) as temporary:
        np.savetxt(temporary, rows.numpy(), "%.6f", ",", header=",".join(columns), comments="")
