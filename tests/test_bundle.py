"""A bundle gives its networks with their weights, its task and its settings; nothing else of it runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_bundle import CONFIG, small_segmenter, write_small_bundle
from torch import nn

from unoise_monai import bundle as bundle_module
from unoise_monai.bundle import UntrustedBundle, find_bundle, known_bundles, load_bundle, shipped_bundles
from unoise_monai.data import SegmentationTask
from unoise_monai.networks.weights import load_weights

SHIPPED = shipped_bundles()


def same_weights(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, own[name]) for name, value in state.items())


def test_there_are_shipped_bundles() -> None:
    assert {"hippocampus_mr_unoise", "pancreas_ct_unoise", "vessel_tof_mra_unoise"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_loads_as_its_files_say(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(path, "cpu")
    config = yaml.safe_load((path / "configs" / "inference.yaml").read_text())
    metadata = json.loads((path / "configs" / "metadata.json").read_text())
    weights = path / "models" / "model.pt"
    assert (bundle.name, bundle.version) == (path.name, metadata["version"])
    assert bundle.task == SegmentationTask(**{k: v for k, v in config["task"].items() if k != "_target_"})
    assert bundle.labels == dict(enumerate(bundle.task.class_names))
    assert (bundle.sigma_min, bundle.sigma_max) == (config["sigma_min"], config["sigma_max"])
    names = ("window", "style", "threshold", "axis", "count", "crop_mm", "slab_mm")
    assert bundle.pictures == {name: config[name] for name in names}
    assert same_weights(bundle.segmenter, torch.load(weights, weights_only=True))
    assert not any(module.training for module in bundle.segmenter.modules())
    assert bundle.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    with torch.no_grad():
        out = bundle.segmenter(torch.zeros(1, 1, 16, 16, 16))
    assert out.shape[1] == metadata["network_data_format"]["outputs"]["pred"]["num_channels"]


def test_data_sets_evaluators_and_the_configs_device_are_left_alone(tmp_path: Path) -> None:
    bundle = load_bundle(write_small_bundle(tmp_path / "small"), "cpu", trusted=True)
    assert (bundle.name, bundle.version) == ("small", "0.3.1")
    assert bundle.task.spacing_mm == (3.0, 3.0, 3.0)
    assert same_weights(bundle.segmenter, small_segmenter().state_dict())


def test_the_hash_of_the_configuration_follows_both_files(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    hashes = [load_bundle(path, "cpu", trusted=True).config_sha256]
    (path / "configs" / "inference.yaml").write_text(CONFIG + "\n")
    hashes.append(load_bundle(path, "cpu", trusted=True).config_sha256)
    (path / "configs" / "metadata.json").write_text('{"version": "0.3.2"}')
    hashes.append(load_bundle(path, "cpu", trusted=True).config_sha256)
    assert len(set(hashes)) == 3
    assert load_bundle(path, "cpu", trusted=True).config_sha256 == hashes[-1]


def test_weights_may_be_safetensors_or_named(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    safe, other = path / "models" / "model.safetensors", tmp_path / "other.pt"
    save_file(small_segmenter(1).state_dict(), safe)
    torch.save(small_segmenter(2).state_dict(), other)
    assert same_weights(load_bundle(path, "cpu", trusted=True).segmenter, small_segmenter(0).state_dict())
    (path / "models" / "model.pt").unlink()
    bundle = load_bundle(path, "cpu", trusted=True)
    assert same_weights(bundle.segmenter, small_segmenter(1).state_dict())
    assert bundle.weights_sha256 == hashlib.sha256(safe.read_bytes()).hexdigest()
    bundle = load_bundle(path, "cpu", weights=other, trusted=True)
    assert same_weights(bundle.segmenter, small_segmenter(2).state_dict())
    assert bundle.weights_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    safe.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights must be at \S*model\.pt or \S*model\.safetensors, got none"):
        load_bundle(path, "cpu", trusted=True)


@pytest.mark.parametrize("name", ["models/model.pt", "configs/inference.yaml", "configs/metadata.json"])
def test_what_changes_while_it_is_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The hashes are those of what was loaded."""
    path = write_small_bundle(tmp_path / "small")

    def loaded(*arguments: object) -> None:
        load_weights(*arguments)  # type: ignore[arg-type]
        with (path / name).open("ab") as file:
            file.write(b" ")

    monkeypatch.setattr(bundle_module, "load_weights", loaded)
    with pytest.raises(ValueError, match=r"bundle small must not change while it is loaded"):
        load_bundle(path, "cpu", trusted=True)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small", CONFIG.replace("channel_factor: 1", "channel_factor: 2"))
    with pytest.raises(
        ValueError, match=r"must fit the network of bundle small, got \d+ of another shape \(noise_model\."
    ):
        load_bundle(path, "cpu", trusted=True)


def test_nothing_runs_before_the_bundle_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "none"))
    harm = tmp_path / "harm.txt"
    config = CONFIG.replace("- $import torch\n", f"- $import torch\n- $open('{harm}', 'w').close()\n")
    config = config.replace("@task.num_classes", f"(open('{harm}', 'w').close(), @task.num_classes)[1]")
    path = write_small_bundle(tmp_path / "theirs", config)
    with pytest.raises(UntrustedBundle, match=r"theirs must be trusted before it runs"):
        load_bundle(path, "cpu")
    assert not harm.exists()
    # The configuration would do harm.
    load_bundle(path, "cpu", trusted=True)
    assert harm.exists()


def test_tags_of_yaml_run_nothing_even_when_trusted(tmp_path: Path) -> None:
    harm = tmp_path / "harm.txt"
    path = write_small_bundle(tmp_path / "b", f"a: !!python/object/apply:os.system ['echo > {harm}']\n{CONFIG}")
    with pytest.raises(ValueError, match=r"bundle b: configs/inference\.yaml cannot be used: could not determine"):
        load_bundle(path, "cpu", trusted=True)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("_target_: unoise_monai.ExplainedSegmenter\n  utility: '@utility'\n  noise_model: '@noise_model'",
         "_target_: torch.nn.Identity", "network_def must be of class ExplainedSegmenter, got Identity"),
        ("task:\n  _target_: unoise_monai.data.SegmentationTask", "task:\n  num_classes: 3",
         r"configs/inference\.yaml cannot be used: "),
        ("sigma_max: 5.0", "sigma_max: 0.0", "sigma_max must be greater than sigma_min"),
        ("sigma_max: 5.0", "", r"configs/inference\.yaml cannot be used: .*sigma_max"),
        ("network_def:", "other:", r"configs/inference\.yaml cannot be used: .*network_def"),
        ("labels: [background, anterior, posterior]", "labels: [background]", r"cannot be used: .*"),
        ("sigma_min: 0.0", "sigma_min: [", r"configs/inference\.yaml cannot be used: "),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_used_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in CONFIG
    path = write_small_bundle(tmp_path / "bad", CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=says) as caught:
        load_bundle(path, "cpu", trusted=True)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1}'])
def test_metadata_without_a_version_are_refused(tmp_path: Path, text: str) -> None:
    path = write_small_bundle(tmp_path / "bad")
    (path / "configs" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"bundle bad: configs/metadata\.json must "):
        load_bundle(path, "cpu", trusted=True)


@pytest.mark.parametrize("name", ["inference.yaml", "metadata.json"])
def test_missing_configs_are_named(tmp_path: Path, name: str) -> None:
    path = write_small_bundle(tmp_path / "bad")
    (path / "configs" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"bundle \S*bad must hold configs/{name}, got none"):
        load_bundle(path, "cpu", trusted=True)


def test_bundles_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = write_small_bundle(tmp_path / "mine" / "small")
    copy = write_small_bundle(tmp_path / "more" / SHIPPED[0].name)
    assert find_bundle(SHIPPED[0].name) == SHIPPED[0]
    assert find_bundle("mine/small") == find_bundle(mine) == mine
    with pytest.raises(ValueError, match=r"one of: hippocampus_mr_unoise, .*; got small$"):
        find_bundle("small")
    monkeypatch.setenv("UNOISE_BUNDLES", f"{tmp_path / 'absent'}:{tmp_path / 'mine'}:{tmp_path / 'more'}")
    assert find_bundle("small") == mine
    assert list(known_bundles()) == sorted([*(path.name for path in SHIPPED), "small"])
    # The shipped one keeps its name; a path says which.
    assert find_bundle(copy.name) == SHIPPED[0]
    assert find_bundle(copy) == copy
    # An output folder of the bundle's name is none.
    shutil.rmtree(tmp_path / "mine" / "small" / "configs")
    (tmp_path / SHIPPED[0].name).mkdir()
    assert find_bundle(SHIPPED[0].name) == SHIPPED[0]
    with pytest.raises(
        ValueError, match=r"folder with configs/inference\.yaml or one of: .*; got mine/small, a folder"
    ):
        find_bundle("mine/small")
