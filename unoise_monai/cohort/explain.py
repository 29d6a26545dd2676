"""Runs the network and the attribution methods on a case that is read."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from dataclasses import replace as replaced

import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.registry import make_attributor
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.cohort.bundle import LoadedBundle
from unoise_monai.cohort.fallback import Attempt, with_less_memory
from unoise_monai.cohort.load import Loaded
from unoise_monai.cohort.settings import Settings
from unoise_monai.cohort.usage import peak_gb, reset_peak
from unoise_monai.data import SegmentationTask
from unoise_monai.inference import Explainer, TiledInferer

FAST = 1.25
"""How many times as coarse the grid of a fast run is: half of the voxels. At 1.5, networks of small structures fail."""


def task_of(bundle: LoadedBundle, settings: Settings) -> SegmentationTask:
    """How volumes are read: as the bundle says, on a coarser grid in a fast run."""
    if not settings.fast:
        return bundle.task
    return replaced(bundle.task, spacing_mm=tuple(FAST * side for side in bundle.task.spacing_mm))


@dataclass
class Explained:
    """What the networks have to say of a case, on the network's grid."""

    loaded: Loaded
    pred: MetaTensor
    """``(K + 1, *spatial)``: logits, then importance; on the CPU."""
    maps: dict[str, Tensor]
    """Of each further method, ``(1, 1, *spatial)``, on the CPU."""
    device: str
    note: str
    """Why it ran otherwise than asked for, else empty."""
    seconds: float
    peak_memory_gb: float


class CohortExplainer:
    """Explains cases with one bundle, whose weights are loaded once.

    Args:
        bundle: on ``device``.
        settings: of the run.
        device: where to run, as long as its memory is enough.
        memory_gb: see `TiledInferer`.
    """

    def __init__(
        self, bundle: LoadedBundle, settings: Settings, device: torch.device, memory_gb: float | None = None
    ) -> None:
        self.bundle, self.settings, self.device, self.memory_gb = bundle, settings, device, memory_gb
        self.task = task_of(bundle, settings)
        self._on_cpu = bundle.segmenter if device.type == "cpu" else None

    def __call__(self, loaded: Loaded) -> Explained:
        """Explain one case, with less memory or on the CPU where it has to be.

        Raises:
            MemoryError: when not even the CPU has enough.
        """
        start = time.perf_counter()
        reset_peak(self.device)
        (pred, maps, device), note = with_less_memory(
            lambda attempt: self._explain(loaded, attempt), self.device, self.memory_gb, loaded.case.name
        )
        return Explained(loaded, pred, maps, device, note, time.perf_counter() - start, peak_gb(self.device))

    def explainer(self, attempt: Attempt) -> Explainer:
        segmenter = self.bundle.segmenter
        if attempt.device != self.device:
            if self._on_cpu is None:
                self._on_cpu = copy.deepcopy(segmenter).to(attempt.device)
            segmenter = self._on_cpu
        return Explainer(segmenter, self.task, TiledInferer(attempt.memory_gb, self.settings.precision))

    def _explain(self, loaded: Loaded, attempt: Attempt) -> tuple[MetaTensor, dict[str, Tensor], str]:
        explainer = self.explainer(attempt)
        pred = explainer.predict(loaded.item["image"])
        maps = {}
        image = loaded.item["image"][None].to(attempt.device)
        for method in self.settings.methods:
            options = {"noise_model": explainer.segmenter.noise_model} if method == "unoise" else {}
            attributor = make_attributor(
                method,
                explainer.segmenter.utility,
                memory_gb=attempt.memory_gb,
                precision=self.settings.precision,
                **options,
            )
            target = foreground_sum(pred.as_tensor()[None, :-1])
            maps[method] = attributor(image, target).as_tensor().cpu()
        return MetaTensor(pred.as_tensor().float().cpu(), meta=pred.meta), maps, str(attempt.device)
