"""A score against the share of the image that stays visible."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class VisibilityCurve(NamedTuple):
    """Dice, or another measure, against the visible share, averaged over volumes."""

    level: Tensor
    """What was asked for, ``(N,)``: the share, or the threshold of the tolerance."""
    share: Tensor
    """Share of the voxels that stayed visible, mean over volumes, ``(N,)``."""
    score: Tensor
    """Mean over volumes, one column a foreground class, ``(N, classes)``."""

    @property
    def mean_score(self) -> Tensor:
        """Mean over the classes, ``(N,)``."""
        return self.score.nanmean(dim=1)

    def at(self, share: float) -> float:
        """Mean score at a visible share, linear between the points measured."""
        order = self.share.argsort()
        x, y = self.share[order], self.mean_score[order]
        right = int(torch.searchsorted(x, torch.tensor(share, dtype=x.dtype)).clamp(1, len(x) - 1))
        width = x[right] - x[right - 1]
        weight = (share - x[right - 1]) / width if width > 0 else torch.ones(())
        return float(torch.lerp(y[right - 1], y[right], weight.clamp(0, 1).to(y.dtype)))

    @property
    def area(self) -> float:
        """Area under mean score against share, trapezoids over the range measured, divided by its width."""
        order = self.share.argsort()
        x, y = self.share[order], self.mean_score[order]
        width = float(x[-1] - x[0])
        return float(torch.trapezoid(y, x)) / width if width > 0 else float(y.mean())


class VisibilityScores(NamedTuple):
    """Every measure of every volume at every level."""

    level: Tensor
    """Shares, or thresholds of the tolerance, ``(N,)``."""
    share: Tensor
    """Share of the voxels that stayed visible, ``(B, N)``."""
    score: dict[str, Tensor]
    """By measure, ``(B, N, classes)``."""

    def curve(self, measure: str) -> VisibilityCurve:
        """The mean over the volumes; NaN are left out."""
        return VisibilityCurve(self.level, self.share.mean(dim=0), self.score[measure].nanmean(dim=0))
