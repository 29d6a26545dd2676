"""A case is read, segmented and made ready once, for all methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unoise_monai.runs.comparison import load_case, prepare

from unoise_monai.data import SegmentationTask
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import Hiding, Visibility
from unoise_monai.runs import MapScorer, find_cases
from unoise_monai.unoise import ExplainedSegmenter

SCORER = MapScorer([Visibility({"zero": Hiding("zero")}, (0.0, 1.0), ("dice",))])


def test_a_labelled_case_is_scored_against_its_label(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path
) -> None:
    case = find_cases(cohort, choice=1)[0]
    subject = prepare(case, task, VolumeNetwork(segmenter.utility))
    volumes = load_case(case, task, torch.device("cpu"))
    assert volumes.label is not None
    assert torch.equal(subject.label, volumes.label)
    with torch.no_grad():
        expected = segmenter.utility(volumes.image.as_tensor()).argmax(dim=1, keepdim=True)
    assert torch.equal(subject.outline, expected)
    assert subject.truth is None
    # With everything visible, the curve ends at the Dice of the whole image.
    curves = SCORER(subject.scored_map(torch.rand(volumes.image.shape)))["curves"]
    both = 2 * ((expected > 0) & (volumes.label > 0)).sum() / ((expected > 0).sum() + (volumes.label > 0).sum())
    assert curves["zero"]["insertion"]["dice"][-1] == pytest.approx(float(both), abs=1e-6)


def test_a_case_without_a_label_is_scored_against_the_network_s_own_segmentation(
    segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path
) -> None:
    subject = prepare(find_cases(cohort / "imagesTs")[0], task, VolumeNetwork(segmenter.utility))
    assert subject.volumes.label is None
    assert torch.equal(subject.label, subject.outline)


def test_what_a_phantom_s_voxels_mean(segmenter: ExplainedSegmenter, task: SegmentationTask, cohort: Path) -> None:
    case = find_cases(cohort, choice=1)[0]
    volume = VolumeNetwork(segmenter.utility)
    subject = prepare(case, task, volume, cohort / "truthTr")
    assert subject.truth is not None
    assert torch.equal(subject.truth, subject.volumes.labels_from(cohort / "truthTr" / f"{case['case']}.nii.gz"))
    with pytest.raises(FileNotFoundError, match=f"{case['case']} must have a label map"):
        prepare(case, task, volume, cohort)
