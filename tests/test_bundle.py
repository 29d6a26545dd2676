"""A bundle gives its networks with their weights, its pipeline and its savers; nothing else of it runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_bundle import CONFIG, METADATA, small_segmenter, write_small_bundle
from torch import nn

from unoise_monai import bundle as bundle_module
from unoise_monai.bundle import (
    Bundle,
    UntrustedBundle,
    find_bundle,
    known_bundles,
    load_bundle,
    shipped_bundles,
    state_sha256,
)
from unoise_monai.data import SegmentationTask
from unoise_monai.handlers import ImportanceSaver, PictureSaver
from unoise_monai.networks.weights import load_weights

SHIPPED = shipped_bundles()


def load(path: Path, **options: Any) -> Bundle:
    return load_bundle(path, "cpu", trusted=True, **options)


def same_weights(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, own[name]) for name, value in state.items())


def test_there_are_shipped_bundles() -> None:
    assert {"hippocampus_mr_unoise", "pancreas_ct_unoise", "vessel_tof_mra_unoise"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_loads_as_its_files_say(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(path, "cpu")
    config = yaml.safe_load((path / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights, network = path / "models" / "model.pt", bundle.explainer.network
    assert (bundle.name, bundle.version) == (path.name, metadata["version"])
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    if "task" in config:
        assert bundle.task == SegmentationTask(**{k: v for k, v in config["task"].items() if k != "_target_"})
        assert bundle.class_names == bundle.task.class_names
    else:
        assert (bundle.task, bundle.class_names) == (None, tuple(channels.values())[:-1])
    importance, pictures = bundle.savers
    assert isinstance(importance, ImportanceSaver)
    assert isinstance(pictures, PictureSaver)
    assert (importance.sigma_min, importance.sigma_max) == (config["sigma_min"], config["sigma_max"])
    assert list(pictures.pictures) == config["pictures"]
    assert same_weights(network, torch.load(weights, weights_only=True))
    assert not any(module.training for module in network.modules())
    assert bundle.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    with torch.no_grad():
        out = network(torch.zeros(1, 1, 16, 16, 16))
    assert out.shape[1] == metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == len(channels)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_data_sets_evaluators_and_the_configs_device_are_left_alone(tmp_path: Path, form: str) -> None:
    path = write_small_bundle(tmp_path / "small")
    if form == "json":
        (path / "configs" / "inference.yaml").unlink()
        (path / "configs" / "inference.json").write_text(json.dumps(yaml.safe_load(CONFIG)), encoding="utf-8")
        assert find_bundle(path) == path
    bundle = load(path)
    assert (bundle.name, bundle.version) == ("small", "0.3.1")
    assert bundle.task is not None
    assert bundle.task.spacing_mm == (3.0, 3.0, 3.0)
    assert same_weights(bundle.explainer.network, small_segmenter().state_dict())
    assert bundle.parsed("memory_gb") is None
    with pytest.raises(ValueError, match=r"bundle small: dataset cannot be used: .*division by zero"):
        bundle.parsed("dataset")
    with pytest.raises(ValueError, match="bundle small: other cannot be used"):
        bundle.parsed("other")


def test_the_hash_of_the_configuration_follows_all_its_files(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    (path / "configs" / "more.yaml").write_text("quantity: sigma\n", encoding="utf-8")
    hashes = [load(path).config_sha256, load(path, overlays=["more"]).config_sha256]
    for name, text in (("inference.yaml", CONFIG + "\n"), ("metadata.json", json.dumps({**METADATA, "a": 1}))):
        (path / "configs" / name).write_text(text, encoding="utf-8")
        hashes.append(load(path).config_sha256)
    assert len(set(hashes)) == 4
    assert load(path).config_sha256 == hashes[-1]


def test_overlays_come_first_then_changes(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    (path / "configs" / "more.yaml").write_text("quantity: sigma\nsigma_max: 3.0\nanswer: $6 * 7\n", encoding="utf-8")
    bundle = load(path, overlays=["more"], changes={"quantity": "tolerance", "task#spacing_mm": [2.0, 2.0, 2.0]})
    saver = bundle.savers[0]
    assert isinstance(saver, ImportanceSaver)
    assert (saver.quantity, saver.sigma_max, bundle.parsed("answer")) == ("tolerance", 3.0, 42)
    assert bundle.task is not None
    assert bundle.task.spacing_mm == (2.0, 2.0, 2.0)
    with pytest.raises(FileNotFoundError, match=r"bundle \S*small must hold configs/absent\.yaml, got none"):
        load(path, overlays=["absent"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "noise"}, "quantity must be one of"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"pictures": ["film"]}, "picture"),
        ({"quality": 1, "task#size": 2}, r"cannot be used: it has no quality, task#size to change$"),
    ],
)
def test_changes_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_small_bundle(tmp_path / "small"), changes=changes)


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        (["background", "anterior", "posterior", "importance"], ("background", "anterior", "posterior")),
        (["vessel", "importance"], ("background", "vessel")),
        (None, ()),
    ],
)
def test_without_a_task_the_metadata_name_the_classes(
    tmp_path: Path, channels: list[str] | None, names: tuple[str, ...]
) -> None:
    config = CONFIG[: CONFIG.index("task:")] + CONFIG[CONFIG.index("utility:") :]
    config = config.replace("$@task.num_classes", "3").replace(
        "unoise_monai.data.preprocessing, task: '@task', with_label: false", "Compose, transforms: []"
    )
    path = write_small_bundle(tmp_path / "small", config)
    pred = {"pred": {"channel_def": dict(enumerate(channels))}} if channels else {}
    metadata = {**METADATA, "network_data_format": {"outputs": pred}}
    (path / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    if not names:
        with pytest.raises(ValueError, match=r"bundle small: configs/metadata\.json must define the channels of pred"):
            load(path)
        return
    bundle = load(path)
    assert bundle.task is None
    assert bundle.class_names == names


def test_weights_may_be_safetensors_or_named(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    safe, other = path / "models" / "model.safetensors", tmp_path / "other.pt"
    save_file(small_segmenter(1).state_dict(), safe)
    torch.save(small_segmenter(2).state_dict(), other)
    assert same_weights(load(path).explainer.network, small_segmenter(0).state_dict())
    (path / "models" / "model.pt").unlink()
    bundle = load(path)
    assert same_weights(bundle.explainer.network, small_segmenter(1).state_dict())
    assert bundle.weights_sha256 == hashlib.sha256(safe.read_bytes()).hexdigest()
    bundle = load(path, weights=other)
    assert same_weights(bundle.explainer.network, small_segmenter(2).state_dict())
    assert bundle.weights_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    safe.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights must be at \S*model\.pt or \S*model\.safetensors, got none"):
        load(path)


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
        load(path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small", CONFIG.replace("channel_factor: 1", "channel_factor: 2"))
    with pytest.raises(
        ValueError, match=r"must fit the network of bundle small, got \d+ of another shape \(noise_model\."
    ):
        load(path)


def test_nothing_runs_before_the_bundle_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "none"))
    harm = tmp_path / "harm.txt"
    config = CONFIG.replace("- $import torch\n", f"- $import torch\n- $open('{harm}', 'w').close()\n")
    config = config.replace("sigma_min: 0.0", f"sigma_min: $(open('{harm}', 'w').close(), 0.0)[1]")
    path = write_small_bundle(tmp_path / "theirs", config)
    with pytest.raises(UntrustedBundle, match=r"theirs must be trusted before it runs"):
        load_bundle(path, "cpu")
    assert not harm.exists()
    # The configuration would do harm.
    load(path)
    assert harm.exists()


def test_tags_of_yaml_run_nothing_even_when_trusted(tmp_path: Path) -> None:
    harm = tmp_path / "harm.txt"
    path = write_small_bundle(tmp_path / "b", f"a: !!python/object/apply:os.system ['echo > {harm}']\n{CONFIG}")
    with pytest.raises(ValueError, match=r"bundle b: configs/inference\.yaml cannot be used: could not determine"):
        load(path)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unoise_monai.ExplainedSegmenter, utility: '@utility', noise_model: '@noise_model'", "torch.nn.Identity",
         "network_def must be of class ExplainedSegmenter, got Identity"),
        ("unoise_monai.handlers.ImportanceSaver,", "torch.nn.Identity,", "savers must be of class Saver, got Identity"),
        ("task:\n  _target_: unoise_monai.data.SegmentationTask", "task:\n  num_classes: 3",
         r"configs/inference\.yaml cannot be used: "),
        ("sigma_max: 5.0", "sigma_max: 0.0", "sigma_max must be greater than sigma_min"),
        ("sigma_max: 5.0", "", r"configs/inference\.yaml cannot be used: .*sigma_max"),
        *((f"\n{name}:", "\nother:", rf"configs/inference\.yaml cannot be used: .*{name}")
          for name in ("network_def", "preprocessing", "inferer", "postprocessing", "savers")),
        ("labels: [background, anterior, posterior]", "labels: [background]", "labels must name the background and"),
        ("sigma_min: 0.0", "sigma_min: [", r"configs/inference\.yaml cannot be used: "),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_used_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CONFIG
    path = write_small_bundle(tmp_path / "bad", CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1}'])
def test_metadata_without_a_version_are_refused(tmp_path: Path, text: str) -> None:
    path = write_small_bundle(tmp_path / "bad")
    (path / "configs" / "metadata.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bundle bad: configs/metadata\.json must "):
        load(path)


def test_missing_configs_are_named(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "bad")
    (path / "configs" / "metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"bundle \S*bad must hold configs/metadata\.json, got none"):
        load(path)
    (path / "configs" / "inference.yaml").unlink()
    with pytest.raises(
        ValueError, match=r"bundle must be a folder with configs/inference\.yaml .*bad, a folder without"
    ):
        load(path)


def test_bundles_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = write_small_bundle(tmp_path / "mine" / "small")
    copy = write_small_bundle(tmp_path / "more" / SHIPPED[0].name)
    assert find_bundle(SHIPPED[0].name) == SHIPPED[0]
    assert find_bundle("mine/small") == find_bundle(mine) == mine
    with pytest.raises(ValueError, match=r"one of: .*hippocampus_mr_unoise, .*; got small$"):
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
    assert load_bundle(SHIPPED[0].name, "cpu").name == SHIPPED[0].name
    with pytest.raises(
        ValueError, match=r"folder with configs/inference\.yaml or one of: .*; got mine/small, a folder"
    ):
        find_bundle("mine/small")


ASSEMBLED = """
import json, sys
from monai.bundle import ConfigParser
from unoise_monai.bundle import assemble
for changes in json.loads(sys.argv[2]):
    parser = ConfigParser(ConfigParser.load_config_file(sys.argv[1] + "/configs/inference.yaml"))
    parser.update({"names": "$@task.class_names", **changes})
    ids = ("network_def", "preprocessing", "inferer", "postprocessing", "savers", "names")
    bundle = assemble(sys.argv[1], *map(parser.get_parsed_content, ids))
    assert (bundle.name, bundle.class_names) == ("small", ("background", "anterior", "posterior"))
    print(bundle.config_sha256)
"""


def test_an_assembled_bundle_has_the_same_hash_in_every_process(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small")
    # The first two differ in where the files lie, not in what they hold.
    places = [{"output_dir": str(tmp_path / name)} for name in ("one", "other")]
    changes = [*places, {"quantity": "sigma"}, {"task#spacing_mm": [2.0, 2.0, 2.0]}, {"precision": "bf16"}]
    one, other = (
        subprocess.run(
            [sys.executable, "-c", ASSEMBLED, str(path), json.dumps(changes)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for seed in ("1", "2")
    )
    assert one == other
    assert one[0] == one[1]
    assert len(set(one)) == len(changes) - 1


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).to(dtype)


def test_equal_weights_have_one_digest_and_any_change_another() -> None:
    digest = state_sha256(network())
    assert len(digest) == 64
    assert state_sha256(network()) == digest
    weight, buffer = network(), network()
    with torch.no_grad():
        weight[0].weight[1, 0, 2, 0, 1] += 1e-6
        buffer[1].running_mean[0] = 0.5
    assert len({digest, state_sha256(weight), state_sha256(buffer), state_sha256(network(torch.bfloat16))}) == 4


def test_the_layout_in_memory_does_not_matter_and_names_and_shapes_do() -> None:
    assert state_sha256(network().to(memory_format=torch.channels_last_3d)) == state_sha256(network())
    flat, square = nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        flat.weight.fill_(1)
        square.weight.fill_(1)
    assert state_sha256(flat) != state_sha256(square)
    assert state_sha256(flat) != state_sha256(nn.ModuleDict({"layer": flat}))


def test_the_network_comes_back_untouched() -> None:
    before = network()
    state_sha256(before)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, network().state_dict()[name], rtol=0, atol=0)
