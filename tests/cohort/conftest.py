"""A small cohort on an oblique, anisotropic, left-handed grid, and a bundle whose networks need no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tasks import pancreas
from torch import nn

from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.data.finding import find_cohort
from unoise_monai.networks import UNet
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs.settings import Settings
from unoise_monai.unoise import ExplainedSegmenter


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled cases and an unlabelled one, as a Decathlon folder."""
    return write_phantom_cohort(
        tmp_path_factory.mktemp("cohort") / "phantoms",
        count=3,
        test_count=1,
        size=(20, 18, 16),
        spacing_mm=(15.0, 16.0, 18.0),
        oblique_degrees=12.0,
        left_handed=True,
        progress=False,
    )


@pytest.fixture
def cases(folder: Path) -> list[CohortCase]:
    return find_cohort(folder)


@pytest.fixture
def bundle() -> LoadedBundle:
    torch.manual_seed(0)
    task = pancreas(spacing_mm=(16.0, 16.0, 16.0))
    utility = UNet(3, 1, 2, depth=2, channel_factor=2)
    noise_model = nn.Conv3d(1, 1, 3, padding=1)
    noise_model.stride, noise_model.halo = 1, 1  # type: ignore[assignment]
    return LoadedBundle(
        name="tiny",
        version="0.1",
        task=task,
        segmenter=ExplainedSegmenter(utility, noise_model).eval(),
        pictures={"window": None, "style": "colour", "threshold": 0.1, "axis": 2, "count": 2, "crop_mm": None},
        sigma_min=0.0,
        sigma_max=5.0,
        weights_sha256="0" * 64,
        config_sha256="1" * 64,
    )


@pytest.fixture
def settings() -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        given = {
            "bundle": "tiny",
            "bundle_version": "0.1",
            "weights_sha256": "0" * 64,
            "config_sha256": "1" * 64,
            "software": "0",
            "precision": "fp32",
        }
        return Settings(**(given | changes))  # type: ignore[arg-type]

    return make
