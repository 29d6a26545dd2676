"""An output is made with one set of settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from unoise_monai.runs.settings import OtherSettings, Settings, claim_output, read_run

Make = Callable[..., Settings]
OTHERS = {
    "bundle": "other",
    "bundle_version": "0.2",
    "weights_sha256": "2" * 64,
    "config_sha256": "2" * 64,
    "software": "1",
    "number_format": "torch.bfloat16",
    "quantity": "tolerance",
    "methods": ("saliency",),
    "images": False,
    "fast": True,
    "precision": "bf16",
    "anonymised": True,
}


def test_every_setting_is_tried_here() -> None:
    assert set(OTHERS) == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_changes_the_digest_and_is_refused_in_an_old_output(
    name: str, settings: Make, tmp_path: Path
) -> None:
    before, after = settings(), settings(**{name: OTHERS[name]})
    assert before.digest != after.digest
    claim_output(tmp_path, before, {})
    kept = (tmp_path / "run.json").read_bytes()
    with pytest.raises(OtherSettings, match=f"{name} was .*--overwrite"):
        claim_output(tmp_path, after, {})
    assert (tmp_path / "run.json").read_bytes() == kept
    claim_output(tmp_path, after, {}, overwrite=True)
    assert read_run(tmp_path)["settings"][name] == json.loads(json.dumps(OTHERS[name]))


def test_the_same_settings_go_on_and_leave_the_first_run_s_words(settings: Make, tmp_path: Path) -> None:
    claim_output(tmp_path, settings(methods=("saliency",)), {"command": "first"})
    claim_output(tmp_path, settings(methods=("saliency",)), {"command": "second"})
    assert read_run(tmp_path)["command"] == "first"


def test_a_broken_run_file_is_named(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OtherSettings, match=r"run\.json must be JSON"):
        claim_output(tmp_path, settings(), {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantity": "noise"}, "quantity"),
        ({"methods": ("voxelwise_mean",)}, "method"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_unknown_options_are_refused(wrong: dict[str, object], message: str, settings: Make) -> None:
    with pytest.raises(ValueError, match=f"{message} must be one of"):
        settings(**wrong)
