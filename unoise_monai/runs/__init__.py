"""Runs over cases: explaining a cohort, comparing methods."""

from unoise_monai.runs.comparison import Comparison, find_cases
from unoise_monai.runs.scoring import MapScorer

__all__ = ["Comparison", "MapScorer", "find_cases"]
