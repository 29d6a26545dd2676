"""Ignite handlers that the bundles' configurations name."""

from unoise_monai.handlers.checkpoint import BestModel, RunCheckpoint
from unoise_monai.handlers.noise_ratio import NoiseRatioUpdater
from unoise_monai.handlers.progress import LossProgress, MetricsTable

__all__ = ["BestModel", "LossProgress", "MetricsTable", "NoiseRatioUpdater", "RunCheckpoint"]
