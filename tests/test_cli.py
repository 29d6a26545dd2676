"""The ``unoise`` command reaches its functions."""

import json
import sys
from pathlib import Path

import pytest

from unoise_monai.cli import main


def test_phantom_writes_a_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "phantoms"
    arguments = ["unoise", "phantom", str(root), "--count=1", "--size=(16,16,16)", "--progress=False"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert json.loads((root / "dataset.json").read_text())["numTraining"] == 1


def test_phantom_writes_the_kind_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "phantoms"
    arguments = ["phantom", str(root), "--count=1", "--kind=vessels", "--size=(16,16,16)", "--progress=False"]
    monkeypatch.setattr(sys, "argv", ["unoise", *arguments])
    main()
    assert json.loads((root / "dataset.json").read_text())["modality"] == {"0": "MRA"}


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unoise", "nothing"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code != 0
