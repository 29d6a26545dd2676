"""The network's own output, a map of each method, less memory where there is little, and how much was taken."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from monai.data import MetaTensor

from unoise_monai.attribution import Saliency, foreground_sum
from unoise_monai.attribution.learned import Learned
from unoise_monai.bundle import Bundle
from unoise_monai.data.cases import Case
from unoise_monai.inference import Explainer
from unoise_monai.metrics import MapScorer
from unoise_monai.metrics.scores import Infidelity, Visibility
from unoise_monai.metrics.visibility import Hiding
from unoise_monai.runs import Comparison
from unoise_monai.runs.explain import RESET, CaseExplainer, CaseReader, Explained, Job, as_json, peak_gb, reset_peak

CPU = torch.device("cpu")


def explain(bundle: Bundle, case: Case, comparison: Comparison | None = None) -> Explained:
    digests = {} if comparison is None else comparison.digests(False)
    return CaseExplainer(bundle, comparison)(CaseReader(bundle)(case), Job(case, methods=digests))


def test_the_prediction_is_the_network_s(bundle: Bundle, case: Case) -> None:
    explained = explain(bundle, case)
    expected = bundle.explainer.predict(explained.loaded.item["image"])
    assert torch.equal(explained.pred.as_tensor(), expected.as_tensor())
    assert (explained.note, explained.device, explained.maps) == ("", "cpu", {})
    assert explained.peak_memory_gb > 0


def test_methods_explain_what_is_segmented(bundle: Bundle, case: Case) -> None:
    explained = explain(bundle, case, Comparison(("saliency", "unoise"), {"saliency": {"sign": "signed"}}))
    network = bundle.explainer.network
    image, target = explained.loaded.item["image"][None], foreground_sum(explained.pred.as_tensor()[None, :-1])
    for name, method in (
        ("saliency", Saliency(network.utility, sign="signed")),
        ("unoise", Learned(network.utility, noise_model=network.noise_model)),
    ):
        torch.testing.assert_close(explained.maps[name], method(image, target).as_tensor())


def test_a_method_that_fails_is_noted_and_the_others_are_run(bundle: Bundle, case: Case) -> None:
    # A layer is asked of the network, so only in the run.
    options = {"grad_cam": {"layer": "nowhere"}}
    found = explain(bundle, case, Comparison(("grad_cam", "saliency"), options))
    assert found.maps.keys() == {"saliency"}
    assert "nowhere" in found.results["grad_cam"]["failed"]


def test_scores_are_measured_of_each_method_and_of_the_ceiling(bundle: Bundle, case: Case) -> None:
    scorer = MapScorer([Visibility({"zero": Hiding("zero")}, (0.0, 0.5, 1.0)), Infidelity(samples=2)])
    found = explain(bundle, case, Comparison(("saliency", "label_distance"), scorer=scorer))
    assert found.maps.keys() == found.results.keys() == {"saliency", "label_distance"}
    for result in found.results.values():
        assert result["label"] == "label"
        assert {"insertion_zero", "deletion_zero"} <= result["scores"].keys()
        assert result == as_json(result)
    assert found.results["saliency"]["forward_passes"] > 0
    assert "infidelity" not in found.results["label_distance"]["scores"]


def test_results_are_what_json_knows() -> None:
    assert as_json({"a": (1, math.nan), "b": [math.inf]}) == {"a": [1, None], "b": [None]}
    with pytest.raises(TypeError):
        as_json({"a": CPU})


def test_too_little_memory_ends_in_a_clear_error(make_bundle: Callable[..., Bundle], case: Case) -> None:
    with pytest.raises(MemoryError, match="one tile of the volume"):
        explain(make_bundle(memory_gb=1e-9), case)


def test_a_gpu_that_is_full_hands_over_to_the_cpu(bundle: Bundle, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU; what runs there has no memory."""
    predict, own = Explainer.predict, bundle.explainer

    def full(self: Explainer, image: MetaTensor) -> MetaTensor:
        if next(self.network.parameters()).device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, image)

    expected = explain(bundle, case).pred
    monkeypatch.setattr(Explainer, "predict", full)
    elsewhere = copy.deepcopy(own.network).to("meta")
    explainer = CaseExplainer(
        replace(bundle, explainer=Explainer(elsewhere, own.preprocess, own.inferer, own.postprocess))
    )
    # Weights on the meta device have no values to bring back.
    explainer._on_cpu = own.network
    explained = explainer(CaseReader(bundle)(case), Job(case))
    assert (explained.note, explained.device) == ("out of memory: on the CPU", "cpu")
    assert torch.equal(explained.pred.as_tensor(), expected.as_tensor())


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
