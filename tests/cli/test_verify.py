"""``unoise bundles verify``: what the model zoo asks for, on bundles that have it and on those that lack one thing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from unoise_monai.bundle import shipped_bundles
from unoise_monai.cli import Exit
from unoise_monai.cli.main import main

SCHEMA = Path(__file__).parents[3] / "shared" / "schemas" / "meta_schema_20240725.json"
HIPPOCAMPUS = next(path for path in shipped_bundles() if path.name == "hippocampus_mr_unoise")
NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4], "strides": [2]}
CONFIG = {
    "imports": ["$import scripts"],
    "bundle_root": ".",
    "dataset_dir": "/nowhere",
    "device": "$torch.device('cuda:9')",
    "network_def": {"_target_": "UNet", **NETWORK},
    "network": "$@network_def.to(@device)",
    "preprocessing": {"_target_": "Compose", "transforms": []},
    "dataset": {"_target_": "Dataset", "data": "$scripts.found(@dataset_dir)", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
    "inferer": {"_target_": "SimpleInferer"},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
    },
    "initialize": [],
    "run": ["$@evaluator.run()"],
}
SCRIPT = """
from pathlib import Path

def found(folder):
    return [{"image": path} for path in Path(folder).rglob("*.nii.gz")]
"""


@pytest.fixture(autouse=True)
def nothing_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "trusted"))


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A bundle as the zoo has them: JSON, scripts, a checkpoint of the trainer's."""
    folder = tmp_path / "zoo"
    for name in ("configs", "docs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        (folder / name).write_text("text\n", encoding="utf-8")
    (folder / "scripts" / "__init__.py").write_text(SCRIPT, encoding="utf-8")
    write(folder, "configs/inference.json", CONFIG)
    metadata = json.loads((HIPPOCAMPUS / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 2
    metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = ["*", "2**p", "8*n"]
    write(folder, "configs/metadata.json", metadata)
    torch.save({"model": UNet(**NETWORK).state_dict(), "epoch": 3}, folder / "models" / "model.pt")
    return folder


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def edit(folder: Path, name: str, **changes: object) -> None:
    """Ids of a configuration replaced, or taken out where they are None."""
    content = {**json.loads((folder / name).read_text(encoding="utf-8")), **changes}
    write(folder, name, {key: value for key, value in content.items() if value is not None})


def verified(
    folder: Path, capsys: pytest.CaptureFixture[str], *options: str, expected: Exit = Exit.DONE
) -> dict[str, str]:
    """What is said of each check that failed."""
    capsys.readouterr()
    assert main(["bundles", "verify", str(folder), *options]) == expected
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] in ("ok  ", "FAIL") for line in lines] == [True] * len(lines)
    return {part: text for part, text in (line[6:].split(": ", 1) for line in lines if line.startswith("FAIL"))}


@pytest.mark.parametrize("bundle", shipped_bundles(), ids=lambda path: path.name)
def test_shipped_bundles_pass_and_stay_as_they_are(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    assert verified(bundle, capsys) == {}
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_a_bundle_of_the_zoo_s_form_passes_once_it_is_trusted(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / "scripts" / "__init__.py").write_text(f"{SCRIPT}\nPath(__file__).with_name('ran').touch()\n")
    assert main(["bundles", "verify", str(zoo)]) == Exit.USAGE
    assert "must be trusted before it runs" in capsys.readouterr().err
    assert not (zoo / "scripts" / "ran").exists()
    assert verified(zoo, capsys, "--trust-bundle") == {}
    assert (zoo / "scripts" / "ran").exists()


def without_files(zoo: Path) -> None:
    (zoo / "LICENSE").unlink()
    (zoo / "docs" / "data_license.txt").unlink()


def without_configuration(zoo: Path) -> None:
    (zoo / "configs" / "inference.json").unlink()


def other_weights(zoo: Path) -> None:
    torch.save(UNet(**{**NETWORK, "out_channels": 5}).state_dict(), zoo / "models" / "model.pt")


def other_channels(zoo: Path) -> None:
    network = {**NETWORK, "out_channels": 3}
    edit(zoo, "configs/inference.json", network_def={"_target_": "UNet", **network})
    torch.save(UNet(**network).state_dict(), zoo / "models" / "model.pt")


def no_inferer(zoo: Path) -> None:
    edit(zoo, "configs/inference.json", inferer=None, evaluator="$@network")


def no_network(zoo: Path) -> None:
    edit(zoo, "configs/inference.json", network_def={"_target_": "UNet", "spatial_dims": 3})


def no_schema(zoo: Path) -> None:
    edit(zoo, "configs/metadata.json", schema=None)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (without_files, {"files": "missing LICENSE, docs/data_license.txt"}),
        (without_configuration, {"files": "missing configs/inference.yaml or train.yaml (or .json)"}),
        (other_weights, {"weights": "must fit the network_def"}),
        (other_channels, {"forward pass": "output channel number `3` doesn't match: `2`"}),
        (no_inferer, {"workflow": "inferer"}),
        (no_network, {"weights": "UNet", "forward pass": "UNet", "workflow": "UNet"}),
        (no_schema, {"metadata": "must name its schema"}),
    ],
)
def test_each_failure_is_named(
    break_it: Callable[[Path], None], says: dict[str, str], zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(zoo)
    failed = verified(zoo, capsys, "--trust-bundle", expected=Exit.ERROR)
    assert failed.keys() == says.keys()
    for part, text in says.items():
        assert text in failed[part]


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the metadata schema is not at {SCHEMA}")
def test_metadata_are_compared_with_the_schema(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonschema", reason="an optional extra")
    options = ["--trust-bundle", "--schema", shutil.copy(SCHEMA, tmp_path)]
    assert verified(zoo, capsys, *options) == {}
    edit(zoo, "configs/metadata.json", version=1)
    failed = verified(zoo, capsys, *options, expected=Exit.ERROR)
    assert failed.keys() == {"metadata"}
    assert "1 is not of type 'string'" in failed["metadata"]


@pytest.mark.parametrize("words", [["verify"], ["verify", "nowhere"], ["verify", "a", "b"]])
def test_refusals(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundles", *words]) == Exit.USAGE
    assert main(["bundles", "verify", str(HIPPOCAMPUS), "--schema", "nowhere.json"]) == Exit.USAGE
