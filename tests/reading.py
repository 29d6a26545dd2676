"""Reads cases as `load` does, but for those whose names say what goes wrong; importable by other processes."""

from __future__ import annotations

import os
import time

from unoise_monai.data import SegmentationTask
from unoise_monai.data.cases import CohortCase
from unoise_monai.runs.load import Loaded, load


def misread(case: CohortCase, task: SegmentationTask) -> Loaded:
    if case.name == "crashes":
        os.abort()
    if case.name == "hangs":
        time.sleep(600)
    if case.name == "raises":
        raise KeyError(str(case.files[0]))
    return load(case, task)


def read_slowly(case: CohortCase, task: SegmentationTask) -> Loaded:
    """Half a second longer; the item says from when to when, by the clock that all processes share."""
    start = time.monotonic()
    time.sleep(0.5)
    loaded = load(case, task)
    loaded.item["read"] = (start, time.monotonic())
    return loaded
