"""A cohort of tiny phantoms on an oblique, anisotropic, left-handed grid, and a network that segments them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tasks import pancreas
from torch import Tensor, nn

from unoise_monai.data import SegmentationTask
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.unoise import ExplainedSegmenter


class Bright(nn.Module):
    """Segments what is brighter than soft tissue: no training needed."""

    stride = 1
    halo = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Conv3d(2, 2, 3, padding=1)
        with torch.no_grad():
            for layer in (self.conv, self.head):
                layer.weight.zero_()
                layer.bias.zero_()
            self.conv.weight[0] = 1 / 27
            self.conv.weight[1] = -1 / 27
            self.head.weight[1, 0] = 1 / 27
            self.head.bias[0] = 0.05

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(
        tmp_path_factory.mktemp("report") / "phantoms",
        count=3,
        test_count=1,
        size=(20, 18, 16),
        spacing_mm=(15.0, 16.0, 18.0),
        oblique_degrees=12.0,
        left_handed=True,
        progress=False,
    )


@pytest.fixture(scope="session")
def task() -> SegmentationTask:
    return pancreas(spacing_mm=(16.0, 16.0, 16.0))


@pytest.fixture
def segmenter() -> ExplainedSegmenter:
    torch.manual_seed(0)
    noise_model = nn.Conv3d(1, 1, 3, padding=1)
    noise_model.stride, noise_model.halo = 1, 1  # type: ignore[assignment]
    return ExplainedSegmenter(Bright(), noise_model).eval()
