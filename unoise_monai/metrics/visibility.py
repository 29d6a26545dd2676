"""Dice against the share of the image that stays visible: the number that says whether a map is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from unoise_monai.checks import check_choice, check_finite
from unoise_monai.metrics.dice import foreground_dice
from unoise_monai.networks.modes import evaluating
from unoise_monai.types import Image, LabelMap, VoxelMap

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ORDERS = ("quantile", "threshold")


class VisibilityCurve(NamedTuple):
    """Dice against the visible share, averaged over volumes."""

    level: Tensor
    """What was asked for, ``(N,)``: the share, or the threshold of the tolerance."""
    share: Tensor
    """Share of the voxels that stayed visible, mean over volumes, ``(N,)``."""
    dice: Tensor
    """Mean over volumes, one column a foreground class, ``(N, classes)``."""

    @property
    def mean_dice(self) -> Tensor:
        """Mean over the classes, ``(N,)``."""
        return self.dice.nanmean(dim=1)

    def at(self, share: float) -> float:
        """Mean Dice at a visible share, linear between the points measured."""
        order = self.share.argsort()
        x, y = self.share[order], self.mean_dice[order]
        right = int(torch.searchsorted(x, torch.tensor(share, dtype=x.dtype)).clamp(1, len(x) - 1))
        width = x[right] - x[right - 1]
        weight = (share - x[right - 1]) / width if width > 0 else torch.ones(())
        return float(torch.lerp(y[right - 1], y[right], weight.clamp(0, 1).to(y.dtype)))

    @property
    def area(self) -> float:
        """Area under mean Dice against share, trapezoids over the range measured, divided by its width."""
        order = self.share.argsort()
        x, y = self.share[order], self.mean_dice[order]
        width = float(x[-1] - x[0])
        return float(torch.trapezoid(y, x)) / width if width > 0 else float(y.mean())


class VisibleDice(Metric):
    """Hide all but the most important voxels, segment what is left, and measure Dice against the label.

    Koker et al., "U-Noise", 2021, section 4.3 and Fig. 3a: the hidden voxels are zeroed (in normalised intensity), by
    one threshold of the tolerance for all volumes (``order="threshold"``: visible where ``B <= level``), or, so that
    maps of any scale compare, by rank within each volume (``order="quantile"``: the top share of the importance, exact
    to the voxel; ties go in the order of the voxels).

    Args:
        network: the utility network; it runs in evaluation mode and comes back in the mode that it had.
        levels: shares to leave visible, or thresholds of the tolerance, each in [0, 1].
        order: ``"quantile"`` or ``"threshold"``.
        value: what ``compute`` returns: ``"curve"`` (a `VisibilityCurve`), ``"area"`` under it, or a share, for the
            mean Dice there.
        inferer: how the network is run; the plain call by default.
        output_transform: from the engine's output to ``(image, importance, label)``: ``(B, C, *spatial)``,
            ``(B, 1, *spatial)`` in [0, 1] and class indices ``(B, 1, *spatial)``.
        device: where the results are kept.

    Raises:
        ValueError: when ``order`` or ``value`` is unknown, or a level or ``value`` lies outside [0, 1]; in ``update``,
            when the importance holds NaN or infinite voxels, or is not one channel on the image's grid.
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
    ) -> None:
        check_choice("order", order, ORDERS)
        if isinstance(value, str):
            check_choice("value", value, ("curve", "area"))
        elif not 0 <= value <= 1:
            raise ValueError(f"value must be 'curve', 'area' or a share in [0, 1], got {value}")
        if not levels or min(levels) < 0 or max(levels) > 1:
            raise ValueError(f"levels must be numbers in [0, 1], at least one, got {tuple(levels)}")
        self.network, self.order, self.value = network, order, value
        self.levels = tuple(float(level) for level in levels)
        self.inferer = SimpleInferer() if inferer is None else inferer
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._shares: list[Tensor] = []
        self._dice: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: tuple[Image, VoxelMap, LabelMap]) -> None:
        image, importance, label = output
        expected = (image.shape[0], 1, *image.shape[2:])
        if tuple(importance.shape) != expected:
            raise ValueError(
                f"importance must be one channel on the image's grid, {expected}, got {tuple(importance.shape)}"
            )
        check_finite(importance, "importance")
        order = importance_order(importance) if self.order == "quantile" else None
        shares, scores = [], []
        for level in self.levels:
            visible = importance >= 1 - level if order is None else top_share(order, level)
            with evaluating(self.network):
                logits = self.inferer(image * visible, self.network)
            shares.append(visible.flatten(1).double().mean(dim=1))
            scores.append(foreground_dice(logits, label).double())
        self._shares += torch.stack(shares, dim=1).to(self._device).unbind()
        self._dice += torch.stack(scores, dim=1).to(self._device).unbind()

    def compute(self) -> Any:
        if not self._dice:
            raise NotComputableError("VisibleDice needs at least one volume, got none")
        curve = VisibilityCurve(
            level=torch.tensor(self.levels, dtype=torch.float64),
            share=torch.stack(self._shares).mean(dim=0).cpu(),
            dice=torch.stack(self._dice).nanmean(dim=0).cpu(),
        )
        if self.value == "curve":
            return curve
        return curve.area if self.value == "area" else curve.at(float(self.value))


def importance_order(importance: VoxelMap) -> VoxelMap:
    """Rank of every voxel within its volume, 0 the most important, ``(B, 1, *spatial)``."""
    flat = importance.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return ranks.view_as(importance)


def top_share(order: VoxelMap, share: float) -> VoxelMap:
    """Which voxels are among the top share of their volume, by the ranks of `importance_order`; bool."""
    return order < round(share * order[0].numel())
