"""Dice against the share of the image that stays visible: the number that says whether a map is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from monai.inferers import Inferer, SimpleInferer
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn

from unoise_monai.checks import check_choice
from unoise_monai.metrics.curve import SHARES, VisibilityScores
from unoise_monai.metrics.hiding import ZERO, Hiding
from unoise_monai.metrics.overlap import check_measures
from unoise_monai.metrics.ranking import MODES, ORDERS
from unoise_monai.metrics.scorer import VisibilityScorer, check_batch, check_levels
from unoise_monai.networks.modes import evaluating
from unoise_monai.types import Image, LabelMap, VoxelMap


class VisibleDice(Metric):
    """Hide all but the most important voxels, segment what is left, and measure Dice against the label.

    Koker et al., "U-Noise", 2021, section 4.3 and Fig. 3a: the hidden voxels are zeroed (in normalised intensity), by
    one threshold of the tolerance for all volumes (``order="threshold"``: visible where ``B <= level``), or, so that
    maps of any scale compare, by rank within each volume (``order="quantile"``: the top share of the importance, exact
    to the voxel; ties go in the order of the voxels). Hiding the most important ones in place of the others
    (``mode="deletion"``) asks the reverse: how soon the segmentation breaks down. `VisibilityScorer` does the same for
    many maps of one image. The mean is over the volumes of all ranks; each must have seen at least one.

    Args:
        network: the utility network; it runs in evaluation mode and comes back in the mode that it had.
        levels: shares to leave visible (to hide, in deletion), or thresholds of the tolerance, each in [0, 1].
        order: ``"quantile"`` or ``"threshold"``.
        value: what ``compute`` returns: ``"curve"`` (a `VisibilityCurve`), ``"area"`` under it, or a share, for the
            mean Dice there. It is the share that is visible, in deletion too.
        inferer: how the network is run; the plain call by default.
        output_transform: from the engine's output to ``(image, importance, label)``: ``(B, C, *spatial)``,
            ``(B, 1, *spatial)`` in [0, 1] and class indices ``(B, 1, *spatial)``.
        device: where the results are kept.
        hiding: what hidden voxels become; zero by default.
        measure: another name of `MEASURES` in place of Dice.
        mode: ``"insertion"``, the top voxels stay visible, or ``"deletion"``, they are hidden.
        spacing_mm: voxel sizes of all volumes, one an axis, for ``measure="surface_distance"``.
        batch: how many levels a pass takes, each with all items of the batch.

    Raises:
        ValueError: when ``order``, ``value``, ``measure`` or ``mode`` is unknown, a level or ``value`` lies outside
            [0, 1], ``batch`` is below 1, or the measure needs ``spacing_mm`` and it is None; in ``update``, when the
            importance or the image holds NaN or infinite voxels, or the importance or the label is not one channel on
            the image's grid.
        NotComputableError: on ``compute`` before any volume was seen.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: Sequence[float] = SHARES,
        order: str = "quantile",
        value: str | float = "curve",
        inferer: Inferer | None = None,
        output_transform: Callable = lambda x: x,
        device: str | torch.device = "cpu",
        hiding: Hiding = ZERO,
        measure: str = "dice",
        mode: str = "insertion",
        spacing_mm: Sequence[float] | None = None,
        batch: int = 1,
    ) -> None:
        check_choice("order", order, ORDERS)
        check_choice("mode", mode, MODES)
        if isinstance(value, str):
            check_choice("value", value, ("curve", "area"))
        elif not 0 <= value <= 1:
            raise ValueError(f"value must be 'curve', 'area' or a share in [0, 1], got {value}")
        check_levels(levels)
        check_measures((measure,), spacing_mm)
        check_batch(batch)
        self.network, self.order, self.value, self.mode = network, order, value, mode
        self.levels = tuple(float(level) for level in levels)
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.hiding, self.measure, self.spacing_mm, self.batch = hiding, measure, spacing_mm, batch
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._shares: list[Tensor] = []
        self._scores: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: tuple[Image, VoxelMap, LabelMap]) -> None:
        image, importance, label = output
        scorer = VisibilityScorer(
            lambda images: self.inferer(images, self.network),
            image,
            label,
            hiding=self.hiding,
            measures=(self.measure,),
            spacing_mm=self.spacing_mm,
            batch=self.batch,
        )
        with evaluating(self.network):
            result = scorer(importance, self.levels, mode=self.mode, order=self.order)
        self._shares += result.share.to(self._device).unbind()
        self._scores += result.score[self.measure].to(self._device).unbind()

    def compute(self) -> Any:
        if not self._scores:
            raise NotComputableError("VisibleDice needs at least one volume, got none")
        level = torch.tensor(self.levels, dtype=torch.float64)
        scores = {self.measure: _gathered(self._scores)}
        curve = VisibilityScores(level, _gathered(self._shares), scores).curve(self.measure)
        if self.value == "curve":
            return curve
        return curve.area if self.value == "area" else curve.at(float(self.value))


def _gathered(results: list[Tensor]) -> Tensor:
    """One row a volume, of all ranks, in their order."""
    return evenly_divisible_all_gather(torch.stack(results)).cpu()
