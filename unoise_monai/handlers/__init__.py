"""Ignite handlers that the bundles' configurations name."""

from unoise_monai.handlers.checkpoint import BestModel, RunCheckpoint
from unoise_monai.handlers.images import PictureSaver
from unoise_monai.handlers.nifti import ImportanceSaver
from unoise_monai.handlers.noise_ratio import NoiseRatioUpdater
from unoise_monai.handlers.progress import LossProgress, MetricsTable
from unoise_monai.handlers.visibility import VisibilityReport

__all__ = [
    "BestModel",
    "ImportanceSaver",
    "LossProgress",
    "MetricsTable",
    "NoiseRatioUpdater",
    "PictureSaver",
    "RunCheckpoint",
    "VisibilityReport",
]
