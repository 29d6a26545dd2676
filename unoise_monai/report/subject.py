"""One case, ready to be explained by any method and to have its maps scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unoise_monai.data import SegmentationTask
from unoise_monai.data.decathlon import Case
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.networks.modes import evaluating
from unoise_monai.networks.outputs import segmentation
from unoise_monai.report.cases import CaseVolumes, load_case
from unoise_monai.report.scoring import MapScorer
from unoise_monai.types import LabelMap, Logits, VoxelMap


class Subject(NamedTuple):
    """What every method on a case shares."""

    volumes: CaseVolumes
    logits: Logits
    """Of the whole image, ``(1, K, *spatial)``."""
    outline: LabelMap
    """The network's own segmentation, ``(1, 1, *spatial)``."""
    label: LabelMap
    """What maps are scored against: the case's label, or the network's own segmentation where it has none."""
    visibility: Callable[[VoxelMap], tuple[dict[str, Any], dict[str, float]]]
    """See `MapScorer.visibility`."""
    truth: LabelMap | None
    """What every voxel of a phantom is, where that is known."""


def prepare(
    case: Case, task: SegmentationTask, volume: VolumeNetwork, scorer: MapScorer, truth_dir: Path | None = None
) -> Subject:
    """Read a case, segment it, and make ready to score its maps.

    Args:
        case: see `find_cases`.
        task: how volumes are read.
        volume: the network, on its device.
        scorer: what is measured of a map.
        truth_dir: folder with ``<case>.nii.gz``, what every voxel of a phantom is.

    Raises:
        CaseError: when a volume is bad, see `load_case`.
        FileNotFoundError: when ``truth_dir`` lacks the case.
    """
    device = next((weight.device for weight in volume.parameters()), torch.device("cpu"))
    volumes = load_case(case, task, device)
    with evaluating(volume):
        logits = volume(volumes.image.as_subclass(Tensor))
    outline = segmentation(logits)
    label = outline if volumes.label is None else volumes.label
    return Subject(
        volumes=volumes,
        logits=logits,
        outline=outline,
        label=label,
        visibility=scorer.visibility(volume, volumes.image, label, volumes.spacing_mm),
        truth=None if truth_dir is None else volumes.labels_from(truth_dir / f"{volumes.name}.nii.gz"),
    )
