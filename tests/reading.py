"""Reads cases as `load` does, but for those whose names say what goes wrong; importable by other processes."""

from __future__ import annotations

import os
import time

from unoise_monai.cohort.cases import CohortCase
from unoise_monai.cohort.load import Loaded, load
from unoise_monai.data import SegmentationTask


def misread(case: CohortCase, task: SegmentationTask) -> Loaded:
    if case.name == "crashes":
        os.abort()
    if case.name == "hangs":
        time.sleep(600)
    if case.name == "raises":
        raise KeyError(str(case.files[0]))
    return load(case, task)
