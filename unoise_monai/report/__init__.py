"""Comparisons of methods over cases, and their scoreboard."""

from unoise_monai.report.cases import find_cases
from unoise_monai.report.comparison import Comparison
from unoise_monai.report.scoring import MapScorer

__all__ = ["Comparison", "MapScorer", "find_cases"]
