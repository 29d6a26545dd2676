"""Scores: each is what its metric gives, and gets what it needs; a further one is one class."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from unoise_monai.attribution.backpropagation import DeepLiftShap
from unoise_monai.attribution.base import Score
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime
from unoise_monai.attribution.gradient import IntegratedGradients, Saliency
from unoise_monai.attribution.perturbation import RISE, Occlusion
from unoise_monai.attribution.targets import Region, foreground_sum
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics import (
    Infidelity,
    MapScore,
    MapScorer,
    PhantomTruth,
    Randomisation,
    ScoredMap,
    Sensitivity,
    Visibility,
    VisibleDice,
    direction,
    infidelity,
    max_sensitivity,
    randomisation,
)
from unoise_monai.metrics.scores import HIDINGS, per_intensity
from unoise_monai.runs.scoreboard import method_rows, write_scoreboard

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extend" / "score.md"
EXPLAIN = ROOT / "bundles" / "hippocampus_mr_unoise" / "configs" / "explain.yaml"
SHORT = Visibility(shares=(0.0, 1.0), measures=("dice",))


def scored(importance: Tensor | None = None, **changes: Any) -> ScoredMap:
    """A map, random by default, of a small random network's own segmentation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    image = torch.randn(1, 1, 12, 10)
    with torch.no_grad():
        logits = network(image)
    label = logits.argmax(dim=1, keepdim=True)
    given = {
        "importance": torch.rand(1, 1, 12, 10) if importance is None else importance,
        "image": image,
        "network": VolumeNetwork(network),
        "logits": logits,
        "label": label,
        "where": label > 0,
        "target": foreground_sum(logits),
        "spacing_mm": (1.0, 2.0),
    }
    return ScoredMap(**{**given, **changes})


def with_method(**changes: Any) -> ScoredMap:
    subject = scored()
    attributor = Saliency(subject.network.network, sign="signed")
    contribution = attributor(subject.image, subject.target).as_tensor()
    return scored(**{"attributor": attributor, "contribution": contribution, **changes})


def test_areas_are_those_of_visible_dice() -> None:
    score, subject = Visibility(shares=(0.0, 0.25, 0.5, 1.0), measures=("dice", "surface_distance")), scored()
    found = MapScorer([score])(subject)
    assert set(found["scores"]) == {f"{mode}_{name}" for name in HIDINGS for mode in ("insertion", "deletion")}
    for name, hiding in HIDINGS.items():
        metric = VisibleDice(subject.network, score.shares, value="area", hiding=hiding, mode="deletion")
        metric.update((subject.image, subject.importance, subject.label))
        assert found["scores"][f"deletion_{name}"] == pytest.approx(metric.compute())
        curve = found["curves"][name]["insertion"]
        assert curve["share"] == [0.0, 0.25, 0.5, 1.0]
        assert (curve["dice"][-1], curve["surface_distance"][-1]) == pytest.approx((1, 0))


def test_what_cannot_be_measured_is_none_in_curves_and_no_score() -> None:
    found = MapScorer([SHORT])(scored(label=torch.zeros(1, 1, 12, 10)))
    assert found["curves"]["zero"]["insertion"]["dice"] == [None, None]
    assert found["scores"] == {}


def test_maps_of_a_case_share_the_passes_at_the_ends() -> None:
    scorer = MapScorer([Visibility(shares=(0.0, 0.5, 1.0), measures=("dice",))])
    passes: list[int] = []
    cache: dict[str, Any] = {}
    for expected in (4 * 4, 4 * 2):
        subject = scored(case_cache=cache)
        subject.network.network.register_forward_hook(lambda *_: passes.append(1))
        if not cache:
            first = subject
        passes.clear()
        found = scorer(subject)
        assert len(passes) == expected
    assert found == scorer(first)


def test_scores_are_those_of_the_metrics() -> None:
    subject, scorer = with_method(), MapScorer([Infidelity(), Sensitivity(), Randomisation(steps=2)], seed=3)
    found = scorer(subject)["scores"]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    given = (subject.attributor, subject.image, subject.target)
    loss = infidelity(subject.score, subject.image, subject.contribution, 0.5, 32, generator=seeded(), box=8)
    random = randomisation(*given, subject.where, seed=3, steps=2)
    expected = {
        "infidelity": loss.unexplained,
        "sensitivity": max_sensitivity(*given, 0.05, 2, generator=seeded()),
        "randomisation_correlation": random.correlation[-1],
        "randomisation_ssim": random.ssim[-1],
        "unchanged": random.unchanged,
    }
    assert found == {name: float(value) for name, value in expected.items()}


def test_a_gradient_predicts_small_changes_and_another_map_does_not() -> None:
    score = Infidelity(sigma=1e-3, box=None)
    assert score(with_method())["infidelity"] < 0.01
    assert score(with_method(contribution=torch.rand(1, 1, 12, 10)))["infidelity"] > 0.5


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"attributor": None}, {"sensitivity", "randomisation_correlation", "randomisation_ssim", "unchanged"}),
        ({"contribution": None}, {"infidelity"}),
        # Of an empty segmentation there are no voxels to compare; the rest is measured all the same.
        ({"where": torch.zeros(1, 1, 12, 10) > 0}, {"randomisation_correlation", "randomisation_ssim", "unchanged"}),
    ],
)
def test_a_score_without_what_it_needs_is_left_out(changes: dict[str, Any], missing: set[str]) -> None:
    scorer = MapScorer([replace(SHORT, hidings={"zero": HIDINGS["zero"]}), *MapScorer().scores[1:]])
    whole = scorer(with_method())["scores"]
    assert set(whole) - set(scorer(with_method(**changes))["scores"]) == missing
    few = scorer(with_method(), many_passes=False)["scores"]
    assert set(few) == {"insertion_zero", "deletion_zero", "infidelity"}


def test_truth_of_a_map_that_knows_it() -> None:
    truth = torch.randint(0, 5, (1, 1, 12, 10), generator=torch.Generator().manual_seed(0))
    scorer = MapScorer([PhantomTruth()])
    assert not scorer(scored())["scores"]
    found = scorer(scored((truth == 1).float() + 0.5 * (truth == 2), truth=truth))["scores"]
    assert found["truth_average_precision"] == pytest.approx(1)
    deciding = ((truth == 1) | (truth == 2)).sum()
    assert found["truth_top_target"] == pytest.approx(float((truth == 1).sum() / deciding))
    assert found["truth_top_landmark"] == pytest.approx(float((truth == 2).sum() / deciding))
    assert found["truth_top_distractor"] == found["truth_top_outside"] == found["truth_top_irrelevant"] == 0


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
    score = Score(VolumeNetwork(network), target)

    def unexplained(values: Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        return float(infidelity(score, image, values, 0.5, 32, generator=generator, box=2).unexplained)

    for attributor in attributors:
        values = attributor(image, target).as_tensor()
        assert attributor.contributes, attributor.name
        assert unexplained(per_intensity(values, image, attributor)) < 1e-6, attributor.name
        assert unexplained(values) > 1e-3, attributor.name
    assert not RISE(network).contributes


def test_the_page_s_score_gets_a_column_and_ranks_in_its_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/extend/score.md as it stands: its class from a file, its configuration by MONAI."""
    code, config = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_scores.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scores.yaml").write_text(config, encoding="utf-8")
    files = [EXPLAIN, tmp_path / "my_scores.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    for score in range(4):
        parser[f"scorer#scores#{score}#_disabled_"] = True
    scorer = parser.get_parsed_content("scorer")
    assert repr(scorer) == "MapScorer(scores=[PhantomTruth(), Spread(share=0.5)], seed=0)"
    flat = torch.ones(1, 1, 12, 10)
    point = flat.clone()
    point[0, 0, 3, 4] = 1000
    results = [
        {"case": "a", "method": method, **scorer(scored(importance))}
        for method, importance in (("flat", flat), ("point", point))
    ]
    assert [result["scores"]["spread"] for result in results] == pytest.approx([0.5, 1 / 120])
    rows = {row.method: row for row in write_scoreboard(results, tmp_path)}
    # Low is good: the map that lies in one voxel comes first.
    assert (rows["point"].ranks["spread"], rows["flat"].ranks["spread"]) == (1, 2)
    table = (tmp_path / "scoreboard.csv").read_text(encoding="utf-8").splitlines()
    assert "spread,spread_low,spread_high,spread_rank" in table[0]
    head = (tmp_path / "scoreboard.md").read_text(encoding="utf-8").splitlines()[0]
    assert head.endswith("| spread |")


def test_a_score_that_counts_for_the_overall_rank_says_so() -> None:
    class Exact(MapScore):
        name = "exact"
        faithfulness = True

        def __call__(self, subject: ScoredMap) -> dict[str, float]:
            return {"exact": 1.0}

    assert direction("exact").better == "high"
    assert repr(Exact()) == "Exact()"
    results = [{"method": name, "case": "a", "scores": {"exact": value}} for name, value in (("a", 0.1), ("b", 0.9))]
    assert [(row.method, row.overall) for row in method_rows(results)] == [("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("column", "name", "better"),
    [
        ("insertion_any name", "visibility", "high"),
        ("deletion_blur", "visibility", "low"),
        ("infidelity", "infidelity", "low"),
        ("sensitivity", "sensitivity", "low"),
        ("randomisation_ssim", "randomisation", "low"),
        ("unchanged", "randomisation", "low"),
        ("truth_average_precision", "truth", "high"),
        ("truth_top_landmark", "truth", "high"),
        ("truth_top_distractor", "truth", "low"),
    ],
)
def test_a_column_knows_its_score_and_direction(column: str, name: str, better: str) -> None:
    found = direction(column)
    assert (found.score.name, found.better) == (name, better)
    assert direction(f"{column}_" if name != "visibility" else "in_sertion") is None


def test_the_bundles_scores_are_the_default_and_0_leaves_one_out() -> None:
    parser = ConfigParser(ConfigParser.load_config_file(EXPLAIN))
    scorer = parser.get_parsed_content("scorer")
    assert scorer.scores[1:] == list(MapScorer().scores[1:])
    assert scorer.scores[0].hidings == MapScorer().scores[0].hidings == HIDINGS
    assert repr(scorer) == repr(ConfigParser(parser.get()).get_parsed_content("scorer"))
    for score, option in ((1, "samples"), (2, "samples"), (3, "steps")):
        parser[f"scorer#scores#{score}#{option}"] = 0
    left = parser.get_parsed_content("scorer")(with_method())["scores"]
    assert {direction(column).score for column in left} == {Visibility}


def test_a_class_that_is_defined_again_takes_the_place_of_the_former() -> None:
    define(name="again", columns=("again_a", "again_b"))
    define(name="again", columns={"again_b": "low", "again_c*": "high"})
    assert direction("again_a") is None
    assert (direction("again_b").better, direction("again_c3").better) == ("low", "high")
    with pytest.raises(ValueError, match="got 'again_b' in other and again"):
        define(name="other", columns=("other", "again_b"))
    assert direction("other") is None


def define(**body: Any) -> type:
    return type("Own", (MapScore,), {"__call__": lambda *_: {"else": 0.0}, **body})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Visibility(hidings={}), "hidings must be at least one"),
        (lambda: Visibility(shares=(0.1, 1.0)), "shares must hold 0 and 1"),
        (lambda: Visibility(measures=("surface_distance", "dice")), "first of measures must be one of .*'surface_d"),
        (lambda: Visibility(measures=("dices",)), "measure must be one of 'dice'"),
        (lambda: Visibility(measures=()), "measures must be a sequence of at least one name"),
        (lambda: MapScorer(scores=[Sensitivity(), Sensitivity(3)]), r"scores must have a name each, got \['sens"),
        (lambda: define(), "name must be given by a score, got none in Own"),
        (lambda: define(name="own", better="large"), "better must be one of 'high', 'low', got 'large'"),
        (lambda: define(name="own", columns={"own": "up"}), "better must be one of 'high', 'low', got 'up'"),
        (lambda: define(name="own", needs=("time",)), "needs must be one of 'label', .*, got 'time'"),
        (lambda: define(name="own", columns=("deletion_own",)), "got 'deletion_own' in own and visibility"),
        (
            lambda: MapScorer(scores=[define(name="own")()])(scored()),
            r"columns of own must be \['own'\], got \['else'\]",
        ),
        (lambda: Infidelity()(scored()), "contribution must be given for a score that needs it, got None"),
    ],
)
def test_refusals(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
