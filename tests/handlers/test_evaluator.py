"""A case that fails is a line in a table; the others are written."""

import csv
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose
from tasks import pancreas
from torch import Tensor, nn

from unoise_monai.data import CaseDataset, preprocessing
from unoise_monai.handlers import CaseEvaluator, ImportanceSaver
from unoise_monai.inference.explain import postprocessing

BAD = 1000.0
"""The intensity of the first voxel of a case that is to fail."""


def mark(image: Tensor) -> bool:
    return bool(image.max() > 1.9)


class Network(nn.Module):
    """Fails on a case that is marked."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and mark(x):
            raise RuntimeError("the layers\ndisagree")
        return torch.cat([-x, x, x.sigmoid()], dim=1)


def fail_if_marked(item: Mapping[Any, Any]) -> Mapping[Any, Any]:
    if mark(item["image"]):
        raise KeyError("no way back")
    return item


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., CaseEvaluator]:
    """Runs three cases of which one is bad, by what it fails at."""

    def start(bad: int | None, stage: str = "") -> CaseEvaluator:
        cases = []
        for number in range(3):
            voxels = np.random.default_rng(number).uniform(-80, 150, (6, 5, 4)).astype(np.float32)
            if number == bad:
                voxels[2, 2, 2] = np.nan if stage == "reading" else BAD
            path = tmp_path / f"case_{number}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.diag([-3.0, 3.0, 3.0, 1.0])), path)
            cases.append({"case": f"case_{number}", "image": str(path)})
        chain = preprocessing(pancreas(spacing_mm=(3.0, 3.0, 3.0)), with_label=False)
        back = postprocessing(chain)
        evaluator = CaseEvaluator(
            tmp_path / "out",
            device=torch.device("cpu"),
            val_data_loader=DataLoader(CaseDataset(cases, chain), batch_size=1),
            network=Network(stage == "network"),
            postprocessing=Compose([fail_if_marked, back]) if stage == "postprocessing" else back,
            val_handlers=[ImportanceSaver(tmp_path / "out")],
        )
        evaluator.run()
        return evaluator

    return start


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("reading", "must hold finite voxels, got 1 NaN"),
        ("network", "RuntimeError: the layers disagree"),
        ("postprocessing", "KeyError: 'no way back'"),
    ],
)
def test_the_others_are_written(
    tmp_path: Path,
    run: Callable[..., CaseEvaluator],
    caplog: pytest.LogCaptureFixture,
    bad: int,
    stage: str,
    reason: str,
) -> None:
    with caplog.at_level(logging.ERROR):
        evaluator = run(bad, stage)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [*(f"case_{number}" for number in range(3) if number != bad), "failures.csv"]
    for number in {0, 1, 2} - {bad}:
        files = sorted(path.name for path in (tmp_path / "out" / f"case_{number}").iterdir())
        assert files == [f"case_{number}_importance.nii.gz", f"case_{number}_seg.nii.gz"]
    with (tmp_path / "out" / "failures.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == f"case_{bad}"
    assert reason in row["reason"]
    assert list(evaluator.failed) == [f"case_{bad}"]
    assert f"failed cases: 1, see {tmp_path / 'out' / 'failures.csv'}" in caplog.text
    assert f"case_{bad} failed: " in caplog.text


def test_where_none_fails_there_is_no_table(tmp_path: Path, run: Callable[..., CaseEvaluator]) -> None:
    run(1, "reading")
    assert (tmp_path / "out" / "failures.csv").is_file()
    # Mended, and run again.
    assert run(None).failed == {}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_0", "case_1", "case_2"]
