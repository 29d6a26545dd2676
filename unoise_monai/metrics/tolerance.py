"""Mean tolerance, over all voxels or over those of the foreground or the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from unoise_monai.checks import check_choice

REGIONS = ("all", "foreground", "background")


class MeanTolerance(Metric):
    """Mean of the tolerance map ``B`` in a region of the label, as an ignite metric.

    A noise model that has learned something tolerates less on the foreground than on the background. NaN where no voxel
    of the region was seen: an empty foreground is no reason to stop. Over the voxels that all ranks saw.

    Args:
        region: ``"all"``, ``"foreground"`` (label above 0) or ``"background"``.
        output_transform: from the engine's output to the pair ``(tolerance, label)``, each ``(B, 1, *spatial)``.
        device: where the sums are kept.

    Raises:
        ValueError: when ``region`` is unknown.
        NotComputableError: on ``compute`` before any volume was seen.
    """

    def __init__(
        self, region: str = "all", output_transform: Callable = lambda x: x, device: str | torch.device = "cpu"
    ) -> None:
        check_choice("region", region, REGIONS)
        self.region = region
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._count = torch.zeros((), dtype=torch.float64, device=self._device)
        self._updates = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        tolerance, label = output[0].detach(), output[1]
        if self.region != "all":
            tolerance = tolerance[(label > 0) if self.region == "foreground" else (label == 0)]
        self._sum += tolerance.sum(dtype=torch.float64).to(self._device)
        self._count += tolerance.numel()
        self._updates += 1

    @sync_all_reduce("_sum", "_count", "_updates")
    def compute(self) -> Any:
        if self._updates == 0:
            raise NotComputableError("MeanTolerance needs at least one volume, got none")
        return float(self._sum / self._count)
