"""The peak rises with what is taken, and is forgotten."""

from __future__ import annotations

import pytest
import torch

from unoise_monai.runs.explain import RESET, peak_gb, reset_peak

CPU = torch.device("cpu")


def test_the_peak_counts_what_was_taken_and_is_forgotten() -> None:
    reset_peak(CPU)
    before = peak_gb(CPU)
    taken = torch.ones(50_000_000)
    assert peak_gb(CPU) > before + 0.19
    del taken
    if not RESET.exists():
        pytest.skip("only Linux forgets the peak of a process")
    reset_peak(CPU)
    assert peak_gb(CPU) < before + 0.1
