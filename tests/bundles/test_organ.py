"""docs/extend/organ.md: a small YAML file and one command make a bundle that trains and explains."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from small_bundle import SMALL, SMALL_NOISE, SMALL_U_NET, workflow

from unoise_monai.bundle import copy_bundle, load_bundle
from unoise_monai.cli import Exit
from unoise_monai.cli.main import main
from unoise_monai.phantoms import write_phantom_cohort

PAGE = Path(__file__).parents[2] / "docs" / "extend" / "organ.md"
TRAINING = {**SMALL, **SMALL_U_NET, **SMALL_NOISE, "val_interval": 1, "batch_size": 2}


def written_on_the_page() -> tuple[str, list[str]]:
    """The YAML file and the words of the command."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(yaml|bash)\n(.*?)```", text, flags=re.DOTALL)[:2])
    return blocks["yaml"], blocks["bash"].split()


def train(bundle: Path, overlays: list[str], **changes: object) -> None:
    flow = workflow(bundle, ["train", *overlays], "train", **changes)
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()


def test_the_page_from_its_file_to_an_importance_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task, command = written_on_the_page()
    Path("spleen.yaml").write_text(task, encoding="utf-8")
    assert command[0] == "unoise"
    assert main(command[1:]) == Exit.DONE
    bundle = tmp_path / capsys.readouterr().out.strip()
    assert bundle.name == "spleen_ct_unoise"
    for name in ("train", "inference"):
        config = yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config["task"] == {"_target_": "unoise_monai.data.SegmentationTask", **yaml.safe_load(task)}
        assert config["dataset_dir"].endswith("Task09_Spleen'")
    pred = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "spleen", "2": "importance"}
    assert pred["num_channels"] == 3

    options = {"size": (28, 24, 26), "spacing_mm": (9.0, 9.5, 10.0), "progress": False}
    data = write_phantom_cohort(tmp_path / "data", 3, test_count=1, **options)
    common = {"dataset_dir": str(data), **TRAINING}
    train(bundle, ["train_utility"], utility_epochs=1, **common)
    train(bundle, [], max_epochs=1, **common)
    shapes = {name: value for name, value in TRAINING.items() if name.startswith(("utility", "noise_model", "task"))}
    loaded = load_bundle(bundle, "cpu", trusted=True, changes=shapes)
    scan = data / "imagesTs" / "phantom_test_001.nii.gz"
    explanation = loaded.explain(scan)
    assert loaded.class_names == ("background", "spleen")
    assert tuple(explanation.importance.shape[1:]) == nib.load(scan).shape
    np.testing.assert_allclose(explanation.importance.affine, nib.load(scan).affine, atol=1e-5)


def test_a_single_logit_keeps_one_channel(tmp_path: Path) -> None:
    task = {"name": "Veins", "labels": ["background", "vein"], "spacing_mm": [1, 1, 1], "patch_size": [16, 16, 16]}
    bundle = copy_bundle("vessel_tof_mra_unoise", tmp_path / "veins", task)
    pred = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "vein", "1": "importance"}


def test_without_a_task_it_is_that_of_the_source(tmp_path: Path) -> None:
    bundle = copy_bundle("hippocampus_mr_unoise", tmp_path / "other")
    texts = [
        yaml.safe_load((folder / "configs" / "inference.yaml").read_text(encoding="utf-8"))
        for folder in (bundle, PAGE.parents[2] / "bundles" / "hippocampus_mr_unoise")
    ]
    assert texts[0] == texts[1]
    assert not any((bundle / "models").iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["copy", "nowhere", "new"], "bundle must be a folder with"),
        (["copy", "hippocampus_mr_unoise", "."], "bundle folder must be new"),
        (["copy", "hippocampus_mr_unoise"], "bundles takes nothing, or copy BUNDLE FOLDER"),
        (["copy", "hippocampus_mr_unoise", "new", "--task", "bad.yaml"], "arguments of SegmentationTask"),
        (["copy", "hippocampus_mr_unoise", "new", "--task", "few.yaml"], "labels must name the background"),
        (["copy", "hippocampus_mr_unoise", "new", "--task", "list.yaml"], "--task must hold a mapping, got list"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("{name: a, organ: b}", encoding="utf-8")
    Path("few.yaml").write_text("{name: a, labels: [background], spacing_mm: [1, 1, 1], patch_size: [8, 8, 8]}")
    Path("list.yaml").write_text("[1]", encoding="utf-8")
    assert main(["bundles", *words]) != Exit.DONE
    assert says in capsys.readouterr().err
    assert not Path("new").exists()


def test_bundles_lists_what_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundles"]) == Exit.DONE
    assert "hippocampus_mr_unoise\t" in capsys.readouterr().out
