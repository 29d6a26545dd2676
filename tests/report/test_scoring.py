"""A map's scores come from the metrics, the same for every method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.deeplift import DeepLiftShap
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime
from unoise_monai.attribution.gradient import IntegratedGradients, Saliency
from unoise_monai.attribution.perturbation import RISE, Occlusion
from unoise_monai.attribution.targets import Region, foreground_sum
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import VisibleDice
from unoise_monai.runs.scoring import HIDINGS, MapScorer, per_intensity, truth_figures


@pytest.fixture
def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    image = torch.randn(1, 1, 12, 10)
    with torch.no_grad():
        return network, image, network(image).argmax(dim=1, keepdim=True)


def test_areas_are_those_of_visible_dice(setting: tuple) -> None:
    network, image, label = setting
    scorer = MapScorer(shares=(0.0, 0.25, 0.5, 1.0), measures=("dice", "surface_distance"))
    importance = torch.rand(1, 1, 12, 10)
    curves, areas = scorer.visibility(VolumeNetwork(network), image, label, (1.0, 2.0))(importance)
    assert set(areas) == {f"{mode}_{name}" for name in HIDINGS for mode in ("insertion", "deletion")}
    for name, hiding in HIDINGS.items():
        metric = VisibleDice(network, scorer.shares, value="area", hiding=hiding, mode="deletion")
        metric.update((image, importance, label))
        assert areas[f"deletion_{name}"] == pytest.approx(metric.compute())
        assert curves[name]["insertion"]["share"] == [0.0, 0.25, 0.5, 1.0]
        assert curves[name]["insertion"]["dice"][-1] == pytest.approx(1)
        assert curves[name]["insertion"]["surface_distance"][-1] == pytest.approx(0)


def test_what_cannot_be_measured_is_none(setting: tuple) -> None:
    network, image, label = setting
    scorer = MapScorer(shares=(0.0, 1.0), measures=("dice",))
    curves, _ = scorer.visibility(VolumeNetwork(network), image, torch.zeros_like(label), (1.0, 1.0))(image)
    assert curves["zero"]["insertion"]["dice"] == [None, None]


def test_faithfulness_and_robustness(setting: tuple) -> None:
    network, image, label = setting
    volume, target = VolumeNetwork(network), foreground_sum(network(image).detach())
    scorer = MapScorer(infidelity_box=None, infidelity_sigma=1e-3, randomisation_steps=2)
    exact = Saliency(network, sign="signed")(image, target).as_tensor()
    # A gradient predicts what small changes do; a map of something else does not.
    assert scorer.faithfulness(Score(volume, target), image, exact)["infidelity"] < 0.01
    assert scorer.faithfulness(Score(volume, target), image, torch.rand_like(exact))["infidelity"] > 0.5
    found = scorer.robustness(Saliency(network), image, target, label > 0)
    assert set(found) == {"sensitivity", "randomisation_correlation", "randomisation_ssim", "unchanged"}
    none = MapScorer(infidelity_samples=0, sensitivity_samples=0, randomisation_steps=0)
    assert none.faithfulness(Score(volume, target), image, exact) == {}
    assert none.robustness(Saliency(network), image, target, label > 0) == {}
    # Of an empty segmentation there are no voxels to compare; the rest is measured all the same.
    nowhere = scorer.robustness(Saliency(network), image, target, torch.zeros_like(label, dtype=torch.bool))
    assert nowhere == {"sensitivity": found["sensitivity"]}


def test_contributions_become_changes_per_intensity() -> None:
    image = torch.tensor([[[2.0, -4.0, 0.0]]])[None]
    values = torch.tensor([[[6.0, 8.0, 5.0]]])[None]
    assert per_intensity(values, image).flatten().tolist() == [3, -2, 0]
    network = nn.Conv2d(1, 1, 1)
    lowest = IntegratedGradients(network, baseline="minimum")
    assert per_intensity(values, image, lowest).flatten().tolist() == pytest.approx([1, 0, 1.25])
    several = DeepLiftShap(network, baselines=("zero", 2.0))
    assert per_intensity(values, image, several).flatten().tolist() == pytest.approx([6, -1.6, -5])
    # A method that is made of another one has that one's baseline.
    for inner in (lowest, several):
        smooth = SmoothGrad(network, inner)
        assert smooth.contributes
        torch.testing.assert_close(per_intensity(values, image, smooth), per_intensity(values, image, inner))


@pytest.mark.parametrize("baseline", ["zero", -4.0])
def test_contributions_of_what_is_hidden_predict_a_linear_network(baseline: str | float) -> None:
    """Of single voxels, each against its own baseline, as well as integrated gradients do."""
    torch.manual_seed(0)
    network, image = nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 4, 5) + 0.5
    target = Region(torch.rand(1, 1, 4, 5) > 0.5, 1)
    voxels = {"labels": torch.arange(20).reshape(1, 1, 4, 5), "baseline": baseline}
    attributors = [
        IntegratedGradients(network, sign="signed", baseline=baseline),
        Occlusion(network, 1, 1, baseline=baseline),
        FeatureAblation(network, **voxels),
        Lime(network, samples=200, ridge=0, **voxels),
        KernelShap(network, samples=200, **voxels),
    ]
    scorer, score = MapScorer(infidelity_box=2), Score(VolumeNetwork(network), target)
    for attributor in attributors:
        values = attributor(image, target).as_tensor()
        assert attributor.contributes, attributor.name
        slopes = per_intensity(values, image, attributor)
        assert scorer.faithfulness(score, image, slopes)["infidelity"] < 1e-6, attributor.name
        assert scorer.faithfulness(score, image, values)["infidelity"] > 1e-3, attributor.name
    assert not RISE(network).contributes


def test_truth_of_a_map_that_knows_it() -> None:
    truth = torch.tensor([[[[0, 1, 2], [3, 4, 4]]]])
    figures = truth_figures((truth == 1).float() + 0.5 * (truth == 2), truth)
    assert figures["truth_average_precision"] == pytest.approx(1)
    assert (figures["truth_top_target"], figures["truth_top_landmark"]) == pytest.approx((0.5, 0.5))
    assert figures["truth_top_distractor"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidings": {}}, "hidings must be at least one"),
        ({"shares": (0.1, 1.0)}, "shares must hold 0 and 1"),
        ({"measures": ("surface_distance", "dice")}, "the first of measures must be one of .*got 'surface_distance'"),
        ({"measures": ("dices",)}, "measure must be one of 'dice'"),
        ({"measures": ()}, "measures must be a sequence of at least one name"),
    ],
)
def test_refusals(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MapScorer(**options)
