"""An output is made with one set of settings, which name what the files depend on."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from unoise_monai.attribution import method_names
from unoise_monai.bundle import Bundle
from unoise_monai.metrics import MapScorer
from unoise_monai.metrics.scores import Visibility
from unoise_monai.metrics.visibility import Hiding
from unoise_monai.runs import Comparison
from unoise_monai.runs.settings import (
    OtherSettings,
    Settings,
    about,
    check_options,
    claim_output,
    find_device,
    options_of,
    parse_methods,
    read_run,
    settings_of,
    software,
)

Make = Callable[..., Settings]
OTHERS = {
    "bundle": "other",
    "bundle_version": "0.2",
    "weights_sha256": "2" * 64,
    "config_sha256": "2" * 64,
    "software": "1",
    "number_format": "torch.bfloat16",
    "anonymised": True,
}
CHANGES = {"quantity": "tolerance", "precision": "bf16", "pictures": ["mip"], "task#spacing_mm": [2.0, 2.0, 2.0]}


def test_every_setting_is_tried_here() -> None:
    assert {*OTHERS, "changes"} == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", [*OTHERS, *CHANGES])
def test_every_setting_changes_the_digest_and_is_refused_in_an_old_output(
    name: str, settings: Make, tmp_path: Path
) -> None:
    before = settings(changes={})
    value = CHANGES.get(name, OTHERS.get(name))
    after = settings(changes={name: value}) if name in CHANGES else settings(changes={}, **{name: value})
    old = "as the bundle has it" if name in CHANGES else getattr(before, name)
    assert before.digest != after.digest
    claim_output(tmp_path, before, {})
    kept = (tmp_path / "run.json").read_bytes()
    with pytest.raises(OtherSettings, match="--overwrite") as caught:
        claim_output(tmp_path, after, {})
    assert f"other settings: {name} was {old!r}, now {value!r}. " in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == kept
    claim_output(tmp_path, after, {}, overwrite=True)
    assert read_run(tmp_path)["settings"] == after.values


def test_the_same_settings_go_on_and_keep_the_first_run_s_command(settings: Make, tmp_path: Path) -> None:
    claim_output(tmp_path, settings(changes={"pictures": ("mip",)}), {"command": "first"})
    claim_output(tmp_path, settings(changes={"pictures": ["mip"]}), {"command": "second"})
    assert read_run(tmp_path)["command"] == "first"


def test_a_broken_run_file_is_named(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(OtherSettings, match=r"run\.json must be JSON"):
        claim_output(tmp_path, settings(), {})


def test_settings_are_those_of_the_bundle(make_bundle: Callable[..., Bundle]) -> None:
    changes = {"quantity": "sigma", "precision": "bf16", "memory_gb": 2.0}
    bundle = make_bundle(**changes)
    found = settings_of(bundle, changes, anonymised=True)
    assert (found.bundle, found.bundle_version, found.anonymised) == (bundle.name, bundle.version, True)
    assert (found.weights_sha256, found.config_sha256) == (bundle.weights_sha256, bundle.config_sha256)
    # However much memory a pass may take, the results are the same.
    assert (found.number_format, found.changes) == ("torch.bfloat16", {"quantity": "sigma", "precision": "bf16"})
    assert settings_of(bundle, changes, remote=True).number_format == "auto"


def test_builds_of_a_version_are_the_same_software() -> None:
    assert f"torch {torch.__version__.split('+')[0]}" in software()
    assert "+" not in software()


def test_about_names_the_device() -> None:
    assert about("unoise explain", torch.device("cpu"))["device"].startswith("cpu (")
    assert about("unoise explain", None)["device"].startswith("that of each worker")


def test_auto_takes_the_device_that_there_is() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'"):
        find_device(name)


@pytest.mark.parametrize(
    ("method", "scorer"),
    [("voxelwise_mean", None), ("voxelwise_mean", MapScorer()), ("no_method", None), ("label_distance", None)],
)
def test_unknown_methods_are_refused(method: str, scorer: MapScorer | None) -> None:
    """The ceiling is a ranking by the label, and no map without scores."""
    with pytest.raises(ValueError, match=f"method must be one of .*, got '{method}'"):
        Comparison((method,), scorer=scorer)


def test_a_comparison_knows_each_method_once_and_which_cases_are_robust() -> None:
    comparison = Comparison(("saliency", "label_distance", "saliency"), scorer=MapScorer(), robust_cases=2)
    assert comparison.methods == ("saliency", "label_distance")
    assert [comparison.is_robust(number) for number in range(3)] == [True, True, False]
    assert not Comparison(("saliency",)).is_robust(0)


def test_the_digest_of_a_method_follows_what_its_results_depend_on(tmp_path: Path) -> None:
    first = Comparison(("saliency", "rise"), scorer=MapScorer()).digests(False)
    others = [
        Comparison(("saliency", "rise"), {"saliency": {"sign": "absolute"}}, MapScorer()).digests(False),
        Comparison(("saliency", "rise"), scorer=MapScorer([Visibility({"zero": Hiding("zero")})])).digests(False),
        Comparison(("saliency", "rise"), scorer=MapScorer(), truth_dir=tmp_path).digests(False),
        Comparison(("saliency", "rise"), scorer=MapScorer()).digests(True),
        Comparison(("saliency", "rise")).digests(False),
    ]
    found = [first["saliency"], *(digests["saliency"] for digests in others)]
    assert len(set(found)) == len(found)
    # Options are those of one method.
    assert others[0]["rise"] == first["rise"]
    assert Comparison(("saliency",), scorer=MapScorer()).digests(False)["saliency"] == first["saliency"]
    assert json.dumps(first)


def test_methods_with_options() -> None:
    text = "saliency,guided_backprop:substitute=true,integrated_gradients:steps=8:rule=riemann_left"
    methods, options = parse_methods(text)
    assert methods == ("saliency", "guided_backprop", "integrated_gradients")
    assert options == {
        "guided_backprop": {"substitute": True},
        "integrated_gradients": {"steps": 8, "rule": "riemann_left"},
    }
    plain, chosen = Comparison(methods), Comparison(methods, options)
    changed = {name for name in methods if plain.digests(False)[name] != chosen.digests(False)[name]}
    assert changed == {"guided_backprop", "integrated_gradients"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("saliency:substitute=true", "option of saliency must be one of .*, got 'substitute'"),
        ("guided_backprop:substitute", "option substitute of guided_backprop must have a value"),
        ("unoise:noise_model=x", "option of unoise must be one of 'sign', .*, got 'noise_model'"),
        ("magic:steps=3", "method must be one of 'saliency', .*, got 'magic'"),
        ("rise:masks=3:masks=4", "option masks of rise must be given once"),
        ("rise:masks=3,rise", "methods must name one with options once, got 'rise' twice"),
        ("rise,rise:masks=3", "methods must name one with options once, got 'rise' twice"),
        ("rise:masks=[3", "option masks of rise must be YAML, got '\\[3'"),
    ],
)
def test_options_that_a_method_does_not_have(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_methods(text)


def test_marks_within_brackets_are_the_value_s() -> None:
    text = "gradient_shap:baselines=[zero,blur],smooth_grad:method=guided_backprop:method_options={substitute: true}"
    assert parse_methods(text)[1] == {
        "gradient_shap": {"baselines": ["zero", "blur"]},
        "smooth_grad": {"method": "guided_backprop", "method_options": {"substitute": True}},
    }


def test_the_order_of_options_changes_no_digest() -> None:
    digests = [
        Comparison(*parse_methods(f"integrated_gradients:{options}")).digests(False)
        for options in ("steps=8:seed=1", "seed=1:steps=8", "steps=9:seed=1")
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", method_names())
def test_every_method_takes_its_own_defaults(method: str) -> None:
    defaults = {name: option.default for name, option in options_of(method).items()}
    assert {"sign", "memory_gb", "precision"} <= set(defaults)
    assert not {"network", "noise_model", "options"} & set(defaults)
    check_options(method, defaults)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magic", {}, "method must be one of 'saliency', .*, got 'magic'"),
        ("saliency", {"steps": 3}, "option of saliency must be one of 'sign', .*, got 'steps'"),
        ("guided_backprop", {"substitute": "yes"}, "substitute of guided_backprop must be bool, got 'yes'"),
        ("rise", {"masks": 2.5}, "masks of rise must be int, got 2.5"),
        ("rise", {"masks": True}, "masks of rise must be int, got True"),
        ("smooth_grad", {"sigma": "1e-3"}, "sigma of smooth_grad must be float, got '1e-3'"),
        ("gradient_shap", {"baselines": "zero"}, "baselines of gradient_shap must be .*, got 'zero'"),
        ("feature_ablation", {"labels": 3}, "labels of feature_ablation must be .*Tensor.*, got 3"),
        ("integrated_gradients", {"steps": 1}, r"options of integrated_gradients .*: steps must be at least 2, got 1"),
        ("smooth_grad", {"method_options": {"substitute": True}}, "options of smooth_grad .* 'substitute'"),
    ],
)
def test_what_a_method_would_refuse_is_refused_before_a_run(
    method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(("saliency",), {method: options})
