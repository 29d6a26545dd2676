"""What a network still segments of an image of which it sees a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from unoise_monai.checks import check_finite
from unoise_monai.metrics.curve import SHARES, VisibilityScores
from unoise_monai.metrics.hiding import ZERO, Hiding
from unoise_monai.metrics.overlap import MEASURES, check_measures
from unoise_monai.metrics.ranking import visible_voxels
from unoise_monai.networks.modes import evaluating
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap


class VisibilityScorer:
    """Scores any number of maps of one image on equal footing: the same hiding, the same noise, the same levels.

    All measures come from one pass a level. The passes with nothing and with everything visible are the same for every
    map and both modes, and run once.

    Args:
        predict: images ``(n, C, *spatial)`` to logits ``(n, K, *spatial)``. A network runs in evaluation mode and comes
            back in the mode that it had; any other callable sees to that itself.
        image: ``(B, C, *spatial)``.
        label: class indices, ``(B, 1, *spatial)``.
        hiding: what hidden voxels become.
        measures: names of `MEASURES`.
        spacing_mm: voxel sizes, one an axis, for the measures that need them.
        batch: how many levels go through ``predict`` at once, each with all items of the image.

    Raises:
        ValueError: when ``batch`` is below 1, the image holds NaN or infinite voxels, the label is not one channel on
            the image's grid, a measure is unknown, or one needs ``spacing_mm`` and it is missing or of another number
            of axes.
    """

    def __init__(
        self,
        predict: nn.Module | Callable[[Image], Logits],
        image: Image,
        label: LabelMap,
        hiding: Hiding = ZERO,
        measures: Sequence[str] = ("dice",),
        spacing_mm: Sequence[float] | None = None,
        batch: int = 1,
    ) -> None:
        check_measures(measures, spacing_mm, image.ndim - 2)
        check_batch(batch)
        check_finite(image, "image")
        _check_grid("label", label, image)
        self.predict, self.hiding, self.measures = predict, hiding, tuple(measures)
        self.spacing_mm, self.batch = spacing_mm, batch
        self.image = image.detach().as_subclass(Tensor)
        self.label = label.detach().as_subclass(Tensor)
        self._fill = hiding.fill(self.image)
        self._ends: dict[bool | None, dict[str, Tensor]] = {}

    def __call__(
        self,
        importance: VoxelMap,
        levels: Sequence[float] = SHARES,
        mode: str = "insertion",
        order: str = "quantile",
    ) -> VisibilityScores:
        """The measures of what is segmented at every level; ``mode`` and ``order`` are those of `visible_voxels`.

        Args:
            importance: ``(B, 1, *spatial)``; in [0, 1] where ``order`` is ``"threshold"``.
            levels: shares, or thresholds of the tolerance, in [0, 1].

        Raises:
            ValueError: when the importance holds NaN or infinite voxels, or is not one channel on the image's grid.
            ValueError: when a level lies outside [0, 1] or there is none, or ``mode`` or ``order`` is unknown.
        """
        check_levels(levels)
        _check_grid("importance", importance, self.image)
        check_finite(importance, "importance")
        importance = importance.detach().as_subclass(Tensor).to(self.image.device)
        visible = visible_voxels(importance, order, mode)
        shares = [visible(level).flatten(1).sum(dim=1).double() / importance[0].numel() for level in levels]
        ends = [_end(share) for share in shares]
        scores = {index: self._ends[end] for index, end in enumerate(ends) if end in self._ends}
        todo = [index for index in range(len(levels)) if index not in scores]
        for start in range(0, len(todo), self.batch):
            part = todo[start : start + self.batch]
            scores |= dict(zip(part, self._scored([visible(levels[index]) for index in part]), strict=True))
        self._ends |= {end: scores[index] for index, end in enumerate(ends) if end is not None}
        return VisibilityScores(
            level=torch.tensor([float(level) for level in levels], dtype=torch.float64),
            share=torch.stack(shares, dim=1).cpu(),
            score={
                name: torch.stack([scores[index][name] for index in range(len(levels))], dim=1)
                for name in self.measures
            },
        )

    def _scored(self, visible: Sequence[VoxelMap]) -> list[dict[str, Tensor]]:
        """The measures of each of several sets of visible voxels, ``(B, classes)``, from one pass."""
        images = torch.cat([torch.where(each, self.image, self._fill) for each in visible])
        with evaluating(self.predict) if isinstance(self.predict, nn.Module) else torch.no_grad():
            logits = self.predict(images).as_subclass(Tensor)
        label = self.label.to(logits.device)
        return [
            {name: MEASURES[name](part, label, self.spacing_mm).double().cpu() for name in self.measures}
            for part in logits.split(len(self.image))
        ]


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels outside [0, 1], and none at all.

    Raises:
        ValueError: when there is no level, or one lies outside.
    """
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels must be numbers in [0, 1], at least one, got {tuple(levels)}")


def check_batch(batch: int) -> None:
    """Refuse a number of levels a pass that is below 1.

    Raises:
        ValueError: when it is.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")


def _check_grid(name: str, volume: Tensor, image: Image) -> None:
    expected = (len(image), 1, *image.shape[2:])
    if tuple(volume.shape) != expected:
        raise ValueError(f"{name} must be one channel on the image's grid, {expected}, got {tuple(volume.shape)}")


def _end(share: Tensor) -> bool | None:
    """Whether all voxels of all items are visible, or none is; None in between."""
    return True if bool((share == 1).all()) else False if bool((share == 0).all()) else None
