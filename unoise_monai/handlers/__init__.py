"""Ignite handlers that the bundles' configurations name."""

from unoise_monai.handlers.evaluator import CaseEvaluator
from unoise_monai.handlers.savers import PICTURES, ImportanceSaver, Picture, PictureSaver, Saver
from unoise_monai.handlers.training import (
    BestModel,
    LossProgress,
    MetricsTable,
    MinutesLimit,
    NoiseRatioUpdater,
    RunCheckpoint,
    VisibilityReport,
)

__all__ = [
    "PICTURES",
    "BestModel",
    "CaseEvaluator",
    "ImportanceSaver",
    "LossProgress",
    "MetricsTable",
    "MinutesLimit",
    "NoiseRatioUpdater",
    "Picture",
    "PictureSaver",
    "RunCheckpoint",
    "Saver",
    "VisibilityReport",
]
