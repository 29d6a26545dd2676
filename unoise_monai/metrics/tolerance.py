"""Mean tolerance, over all voxels, those of the foreground and those of the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

SUFFIXES = ("", "_foreground", "_background")
"""Of the metric's name, for the mean over all voxels, those with a label above 0, and the others."""


class MeanTolerance(Metric):
    """Means of the tolerance map ``B``, as an ignite metric: three of one pass over the voxels.

    A noise model that has learned something tolerates less on the foreground than on the background. NaN where no voxel
    of a region was seen: an empty foreground is no reason to stop. Over the voxels that all ranks saw.

    Attached as ``tolerance``, it gives an engine the metrics ``tolerance``, ``tolerance_foreground`` and
    ``tolerance_background``; `compute` gives the three in that order.

    Args:
        output_transform: from the engine's output to the pair ``(tolerance, label)``, each ``(B, 1, *spatial)``.
        device: where the sums are kept.

    Raises:
        NotComputableError: on ``compute`` before any volume was seen.
    """

    def __init__(self, output_transform: Callable = lambda x: x, device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._sums = torch.zeros(len(SUFFIXES), dtype=torch.float64, device=self._device)
        self._counts = torch.zeros(len(SUFFIXES), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        tolerance, label = output[0].detach(), output[1]
        regions = (tolerance, tolerance[label > 0], tolerance[label == 0])
        for index, values in enumerate(regions):
            self._sums[index] += values.sum(dtype=torch.float64).to(self._device)
            self._counts[index] += values.numel()

    @sync_all_reduce("_sums", "_counts")
    def compute(self) -> Any:
        if self._counts[0] == 0:
            raise NotComputableError("MeanTolerance needs at least one volume, got none")
        return tuple((self._sums / self._counts).tolist())

    def completed(self, engine: Engine, name: str) -> None:
        """One scalar a region, so that tables, logs and TensorBoard take each as any other metric."""
        for suffix, mean in zip(SUFFIXES, self.compute(), strict=True):
            engine.state.metrics[f"{name}{suffix}"] = mean
