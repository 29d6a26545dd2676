"""What the report says of a run, and what it keeps to itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unoise_monai.report.cases import run_facts, run_quantity


def test_versions_and_settings_but_no_paths_and_names(tmp_path: Path) -> None:
    run = {
        "bundle": "/home/jane/hippocampus_mr_unoise",
        "weights_sha256": "ab12",
        "command": "unoise explain x /home/jane/DOE^JANE",
        "input": "DOE",
        "output": "out",
        "device": "cpu",
        "versions": {"torch": "2.8", "os": "/usr/lib/x"},
        "settings": {"methods": ["saliency", "rise"], "fast": False, "organs": None, "scans": "C:\\data"},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert run_facts(tmp_path) == [
        ("bundle", "hippocampus_mr_unoise"),
        ("weights sha256", "ab12"),
        ("device", "cpu"),
        ("versions, torch", "2.8"),
        ("settings, methods", "saliency, rise"),
        ("settings, fast", "False"),
    ]


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "\udcff"])
def test_a_run_that_says_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run_facts(tmp_path) == []
    assert run_quantity(tmp_path) is None


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"settings": {"quantity": "sigma"}}, "sigma"),
        ({"settings": {"quantity": 3}}, None),
        ({"settings": []}, None),
        ({}, None),
    ],
)
def test_what_was_written_of_the_importance(run: dict[str, object], expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert run_quantity(tmp_path) == expected
