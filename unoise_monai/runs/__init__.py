"""Runs over cases: explaining a cohort, comparing methods."""

from unoise_monai.metrics.scores import MapScorer
from unoise_monai.runs.run import Summary, explain_cases
from unoise_monai.runs.settings import Comparison, Settings, settings_of

__all__ = ["Comparison", "MapScorer", "Settings", "Summary", "explain_cases", "settings_of"]
