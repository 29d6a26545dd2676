"""Runs the network and the attribution methods on a case that is read."""

from __future__ import annotations

import copy
import resource
import sys
import time
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.registry import make_attributor
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.task import SegmentationTask
from unoise_monai.inference.explain import Explainer
from unoise_monai.inference.tiling import TiledInferer
from unoise_monai.runs.load import Loaded
from unoise_monai.runs.settings import Attempt, Settings, with_less_memory

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to watch: on a GPU its memory, else the process's own, where the system can forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        try:
            RESET.write_text("5", encoding="utf-8")
        except OSError:
            # Not every container lets a process; the peak is then that of the whole run.
            return


def peak_gb(device: torch.device) -> float:
    """The most memory that was taken since `reset_peak`, in 1e9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024 / 1e9
    # macOS counts bytes, Linux kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


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
