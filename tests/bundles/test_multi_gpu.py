"""Every bundle trains in several processes: the same metrics as one, each file once, and no rank waits for ever."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from killing import table
from monai.bundle import ConfigWorkflow
from monai.bundle.config_parser import ConfigParser
from monai.handlers import MeanDice
from ranks import on_ranks
from small_bundle import BUNDLES, PHANTOMS, SMALL, SMALL_NOISE, SMALL_U_NET, bundle_parametrize
from torch import Tensor, nn

from unoise_monai.data.datasets import rank_0_first, rank_share
from unoise_monai.metrics import MeanTolerance, VisibleDice, foreground_dice, segmentation_pair
from unoise_monai.networks import UNet
from unoise_monai.phantoms import write_phantom_cohort

ROOT = Path(__file__).parents[2]
CONFIGS = {"train_utility": ["train", "train_utility"], "train": ["train"]}
"""What the overlay is laid over."""
OVERLAY = "multi_gpu_train"
TRAINING = {"val_interval": 1, "val_shares": [0.0, 0.3, 1.0], "batch_size": 2}
SECONDS = 240
"""Far above what a run takes, and far below the half hour after which gloo gives up waiting for a rank."""


def changes(bundle: Path, config: str, cohort: Path, folder: Path) -> dict[str, Any]:
    """What makes a run small, with its folders."""
    utility = {"utility#channels": [4, 8, 8]} if bundle.name.startswith("vessel") else SMALL_U_NET
    paths = {"dataset_dir": str(cohort), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / config)}
    epochs = {"utility_epochs": 1} if config == "train_utility" else {"max_epochs": 1, **SMALL_NOISE}
    # The hippocampus bundle's own crops are for its noise model.
    patch = {"crop_size": "$@task.patch_size"} if bundle.name.startswith("hippocampus") else {}
    return {"bundle_root": str(bundle), **SMALL, **TRAINING, **patch, **utility, **paths, **epochs}


def torchrun(bundle: Path, config: str, settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Two processes, started by the command of the bundle's docs."""
    files = [str(bundle / "configs" / f"{name}.yaml") for name in (*CONFIGS[config], OVERLAY)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", f"--config_file={files}"]
    command += [f"--logging_file={bundle / 'configs' / 'logging.conf'}"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


class Bright(nn.Module):
    """Segments by intensity."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0 * x, 6 * x - 2], dim=1)


def volumes() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Three of image, importance and label, of different sizes, one without foreground."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, side in enumerate((6, 9, 7)):
        image = torch.randn(1, 1, side, 8, 5, generator=generator)
        importance = torch.rand(image.shape, generator=generator)
        found.append((image, importance, (image > 0.4).long() * (number != 1)))
    return found


def measured(part: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    """The metrics of the bundles' configurations over these volumes, and those of all other ranks."""
    visible, tolerance = VisibleDice(Bright(), (0.0, 0.1, 0.4, 1.0)), MeanTolerance()
    dice = MeanDice(include_background=False, save_details=False)
    for image, importance, label in part:
        visible.update((image, importance, label))
        tolerance.update((1 - importance, label))
        dice.update(segmentation_pair(Bright()(image), label))
    curve = visible.compute()
    return {"share": curve.share, "score": curve.score, "tolerance": tolerance.compute(), "dice": dice.compute()}


def job(folder: Path) -> dict[str, Any]:
    """On each rank: metrics of a share, files that rank 0 makes first, and all bundles on two cases."""
    torch.set_num_threads(1)
    rank, found = idist.get_rank(), volumes()
    results: dict[str, Any] = {
        "metrics": measured(rank_share(found, rank, 2)),
        "one volume": measured(rank_share(found[:1], rank, 2)),
    }
    first = folder / "first"

    def make() -> bool:
        there = first.exists()
        if not there:
            time.sleep(0.5)
            first.touch()
        return there

    results["found"] = rank_0_first(make)
    for bundle in BUNDLES:
        for config in CONFIGS:
            settings = changes(bundle, config, folder / "two", folder / bundle.name)
            flow = ConfigWorkflow(
                config_file=[str(bundle / "configs" / f"{name}.yaml") for name in (*CONFIGS[config], OVERLAY)],
                workflow_type="train",
                logging_file=False,
                **settings,
            )
            flow.initialize()
            results[f"{bundle.name} {config} missing"] = flow.check_properties()
            flow.run()
            network = flow.parser.get_parsed_content("network")
            results[f"{bundle.name} {config}"] = network.state_dict()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multi_gpu")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    write_phantom_cohort(folder / "two", 2, **PHANTOMS)
    return on_ranks(job, folder)


@pytest.fixture(scope="module")
def cohort(folder: Path) -> Path:
    return write_phantom_cohort(folder / "seven", 7, **PHANTOMS)


def test_metrics_over_ranks_equal_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    expected = measured(volumes())
    for rank in ranks:
        for name, value in expected.items():
            torch.testing.assert_close(rank["metrics"][name], value, rtol=0, atol=0)
    single = [foreground_dice(Bright()(image), label) for image, _, label in volumes()]
    assert expected["dice"] == pytest.approx(float(torch.cat(single).nanmean()))


def test_a_volume_that_all_ranks_take_counts_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name, value in measured(volumes()[:1]).items():
            torch.testing.assert_close(rank["one volume"][name], value)


def test_rank_0_makes_files_first(ranks: list[dict[str, Any]]) -> None:
    assert [rank["found"] for rank in ranks] == [False, True]


@bundle_parametrize
@pytest.mark.parametrize("config", CONFIGS)
def test_trains_with_fewer_volumes_than_ranks(
    bundle: Path, config: str, ranks: list[dict[str, Any]], folder: Path
) -> None:
    split = json.loads((folder / bundle.name / "models" / "split.json").read_text(encoding="utf-8"))
    assert [len(split[part]) for part in ("training", "validation", "test")] == [1, 1, 0]
    assert ranks[0][f"{bundle.name} {config} missing"] == []
    states = [rank[f"{bundle.name} {config}"] for rank in ranks]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0)
    saved = {"train_utility": "utility.pt", "train": "model.pt"}[config]
    best = torch.load(folder / bundle.name / "models" / saved, weights_only=True)
    assert set(best) == set(states[0])
    # Two of rank 0's, the trainer's and the evaluator's.
    assert len(list((folder / bundle.name / config / "tensorboard").iterdir())) == 2


@bundle_parametrize
def test_other_ranks_lose_reports_only(bundle: Path) -> None:
    overlay = ConfigParser.load_config_file(bundle / "configs" / f"{OVERLAY}.yaml")
    train = ConfigParser.load_config_file(bundle / "configs" / "train.yaml")
    assert train["is_not_rank0"] is False
    assert "is_not_rank0" in overlay
    for part in ("train", "validate"):
        silenced = [handler for handler in train[part]["handlers"] if "_disabled_" in handler]
        assert [handler["_target_"] for handler in silenced] == ["StatsHandler", "TensorBoardStatsHandler"]
        assert {handler["_disabled_"] for handler in silenced} == {"@is_not_rank0"}
    # All bundles are laid over in the same way; the vessels' labels can be made first.
    first = ConfigParser.load_config_file(BUNDLES[0] / "configs" / f"{OVERLAY}.yaml")
    assert {key for key in {*overlay, *first} if overlay.get(key) != first.get(key)} <= {"cases"}


def test_torchrun_trains_and_measures_as_one_process(cohort: Path, folder: Path) -> None:
    bundle, models = ROOT / "bundles" / "hippocampus_mr_unoise", folder / "run" / "models"
    settings = changes(bundle, "train", cohort, folder / "run")
    torch.manual_seed(0)
    models.mkdir(parents=True)
    torch.save(UNet(3, 1, 3, depth=2, channel_factor=2).state_dict(), models / "utility.pt")
    options = {"validation_share": 0.4, "cache": "disk"}
    done = torchrun(bundle, "train", {**settings, **options})
    assert done.returncode == 0, done.stderr
    assert len(json.loads((models / "split.json").read_text(encoding="utf-8"))["validation"]) == 3

    assert sorted(path.name for path in models.iterdir()) == ["model.pt", "split.json", "utility.pt"]
    output = folder / "run" / "train"
    assert sorted(path.name for path in output.iterdir()) == ["cache", "metrics.csv", "tensorboard"]
    assert len(list((output / "tensorboard").iterdir())) == 2
    # Three training cases and three for validation, each kept once.
    assert len(list((output / "cache").iterdir())) == 6
    # Rank 0 alone reports.
    assert done.stdout.count("best val_visible_dice so far") == 1

    (row,) = table(output, "metrics.csv")
    one = {**settings, **options, "weights": str(models / "model.pt")}
    flow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.yaml"), workflow_type="train", logging_file=False, **one
    )
    flow.parser["output_dir"] = str(folder / "run" / "one")
    flow.initialize()
    flow.parser.get_parsed_content("network").load_state_dict(torch.load(models / "model.pt", weights_only=True))
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    names = [name for name in row if name.startswith("val_")]
    assert len(names) == 5
    for name in names:
        # The table's six decimals.
        assert float(row[name]) == pytest.approx(evaluator.state.metrics[name], abs=1e-6)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_a_rank_that_fails_ends_the_run_with_its_error(cohort: Path, folder: Path) -> None:
    bundle, data = ROOT / "bundles" / "hippocampus_mr_unoise", folder / "damaged"
    shutil.copytree(cohort, data)
    cases = [f"phantom_{number:03}" for number in range(1, 8)]
    split = {"seed": 0, "training": cases[:4], "validation": cases[4:], "test": []}
    models = folder / "failing" / "models"
    models.mkdir(parents=True)
    (models / "split.json").write_text(json.dumps(split), encoding="utf-8")
    # Rank 1 alone reads it, while rank 0 waits for it.
    truncated(data / "imagesTr" / f"{rank_share(cases[4:], 1, 2)[-1]}.nii.gz")
    # A rank that waits for ever would end in a `TimeoutExpired`.
    done = torchrun(bundle, "train_utility", changes(bundle, "train_utility", data, folder / "failing"))
    assert done.returncode != 0
    assert "CaseError: case phantom_007: image file" in done.stderr
    assert not (models / "utility.pt").exists()
