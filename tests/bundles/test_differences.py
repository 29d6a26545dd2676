"""The bundles differ in what their data are, and in nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle.config_parser import ConfigParser
from small_bundle import BUNDLES, bundle_parametrize

RUNS = {
    "train": ["train"],
    "train_utility": ["train", "train_utility"],
    "train_visible": ["train", "train_visible"],
    "evaluate": ["train", "evaluate"],
    "multi_gpu_train": ["train", "multi_gpu_train"],
    "inference": ["inference"],
    "explain": ["inference", "explain"],
}
TRAININGS = "train train_utility train_visible evaluate multi_gpu_train"
MAY_DIFFER = {
    # The data: where they are, how they are found, read and cut.
    "dataset_dir": "all",
    "task": "all",
    "utility": "all",
    "cases": TRAININGS,
    "missing_labels": TRAININGS,
    "dataset#data": "inference explain",
    "chosen": "explain",
    "part": "explain",
    "crop_size": "train train_visible evaluate multi_gpu_train",
    "train#preprocessing": TRAININGS,
    "samples": TRAININGS,
    "sampling": TRAININGS,
    # How long and in which batches.
    "max_epochs": TRAININGS,
    "utility_epochs": "train_utility",
    "val_interval": TRAININGS,
    "batch_size": TRAININGS,
    # What the intensities and the sizes of structures ask for.
    "sigma_max": "all",
    "val_shares": TRAININGS,
    "train#network#value": "train_visible",
    "train#network#shares": "train_visible",
    "validate#additional_metrics#quantile#levels": "evaluate",
    "validate#handlers": "evaluate",
    "options": "explain",
    "scorer#scores#0#hidings": "explain",
    "scorer#scores#0#shares": "explain",
    # Pictures.
    "window": "inference explain",
    "threshold": "inference explain",
    "slab_mm": "inference explain",
    # DS6's own training of the vessels' network.
    "imports": "train_utility",
    "loss": "train_utility",
    "scale_loss": "train_utility",
    "deformation_aware": "train_utility",
    "train#network": "train_utility",
    "train#key_metric#train_dice#output_transform": "train_utility",
}
"""The ids in which bundles may differ, with all below them, and in which runs."""


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its id."""
    if isinstance(config, list) and any(isinstance(each, dict) for each in config):
        config = dict(enumerate(config))
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from leaves(value, f"{path}#{key}" if path else str(key))
    else:
        yield path, config


def content(bundle: Path, run: str) -> dict[str, Any]:
    files = [bundle / "configs" / f"{name}.yaml" for name in RUNS[run]]
    return dict(leaves(ConfigParser.load_config_files(files)))


def differing(run: str) -> set[str]:
    first, *others = (content(bundle, run) for bundle in BUNDLES)
    missing = object()
    return {key for other in others for key in {*first, *other} if first.get(key, missing) != other.get(key, missing)}


def allowed(run: str) -> set[str]:
    return {key for key, runs in MAY_DIFFER.items() if runs == "all" or run in runs.split()}


def within(key: str, ids: set[str]) -> bool:
    parts = key.split("#")
    return any("#".join(parts[:length]) in ids for length in range(1, len(parts) + 1))


@pytest.mark.parametrize("run", RUNS)
def test_bundles_differ_in_what_their_data_are(run: str) -> None:
    assert {key for key in differing(run) if not within(key, allowed(run))} == set()


def test_no_difference_is_listed_that_is_none() -> None:
    found = {run: differing(run) for run in RUNS}
    for key in MAY_DIFFER:
        for run in RUNS:
            if key in allowed(run):
                assert any(within(other, {key}) for other in found[run]), f"{key} in {run}"


def test_every_configuration_is_compared() -> None:
    for bundle in BUNDLES:
        assert {path.stem for path in (bundle / "configs").glob("*.yaml")} == set(RUNS)


@bundle_parametrize
def test_configurations_are_short(bundle: Path) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (bundle / "configs").iterdir())
    assert lines <= 560
