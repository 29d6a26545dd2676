"""The network's own output, a map of each method, and less memory where there is little."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from monai.data import MetaTensor

from unoise_monai.attribution import Saliency, foreground_sum
from unoise_monai.attribution.learned import Learned
from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.inference import Explainer
from unoise_monai.runs.explain import FAST, CohortExplainer, task_of
from unoise_monai.runs.load import load
from unoise_monai.runs.settings import Settings

CPU = torch.device("cpu")
Make = Callable[..., Settings]


def test_the_prediction_is_the_network_s(bundle: LoadedBundle, settings: Make, cases: list[CohortCase]) -> None:
    loaded = load(cases[0], bundle.task)
    explained = CohortExplainer(bundle, settings(), CPU)(loaded)
    expected = Explainer(bundle.segmenter, bundle.task).predict(loaded.item["image"])
    torch.testing.assert_close(explained.pred.as_tensor(), expected.as_tensor(), rtol=1e-2, atol=2e-2)
    assert explained.note == ""
    assert explained.peak_memory_gb > 0


def test_methods_explain_what_is_segmented(bundle: LoadedBundle, settings: Make, cases: list[CohortCase]) -> None:
    loaded = load(cases[0], bundle.task)
    explained = CohortExplainer(bundle, settings(methods=("saliency", "unoise")), CPU)(loaded)
    logits = explained.pred.as_tensor()[None, :-1]
    expected = Saliency(bundle.segmenter.utility)(loaded.item["image"][None], foreground_sum(logits))
    torch.testing.assert_close(explained.maps["saliency"], expected.as_tensor())
    learned = Learned(bundle.segmenter.utility, noise_model=bundle.segmenter.noise_model)
    assert torch.equal(
        explained.maps["unoise"], learned(loaded.item["image"][None], foreground_sum(logits)).as_tensor()
    )


def test_a_fast_run_has_a_coarser_grid(bundle: LoadedBundle, settings: Make) -> None:
    assert task_of(bundle, settings()) == bundle.task
    assert task_of(bundle, settings(fast=True)).spacing_mm == tuple(FAST * side for side in bundle.task.spacing_mm)


def test_too_little_memory_ends_in_a_clear_error(bundle: LoadedBundle, settings: Make, cases: list[CohortCase]) -> None:
    with pytest.raises(MemoryError, match="one tile of the volume"):
        CohortExplainer(bundle, settings(), CPU, memory_gb=1e-9)(load(cases[0], bundle.task))


def test_a_gpu_that_is_full_hands_over_to_the_cpu(
    bundle: LoadedBundle, settings: Make, cases: list[CohortCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU; what runs there has no memory."""
    loaded = load(cases[0], bundle.task)
    predict = Explainer.predict

    def full(self: Explainer, image: MetaTensor) -> MetaTensor:
        if next(self.segmenter.parameters()).device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, image)

    expected = CohortExplainer(bundle, settings(), CPU)(loaded).pred
    monkeypatch.setattr(Explainer, "predict", full)
    elsewhere = copy.deepcopy(bundle.segmenter).to("meta")
    explainer = CohortExplainer(replace(bundle, segmenter=elsewhere), settings(), torch.device("meta"))
    explainer._on_cpu = bundle.segmenter
    explained = explainer(loaded)
    assert explained.note == "out of memory: on the CPU"
    assert explained.device == "cpu"
    assert torch.equal(explained.pred.as_tensor(), expected.as_tensor())
