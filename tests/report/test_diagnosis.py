"""A diagnosis names what failed and what to do, and nobody's folders or name."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest

from unoise_monai.report.doctor import Diagnosis, Finding, told


def test_lines_and_dictionary_say_the_same() -> None:
    good = Finding("versions", "torch", "2.13.0", values={"a": 1})
    note = Finding("versions", "ray", "not installed", advice="pip install ray")
    bad = Finding("bundles", "small", "broken", False, "mend it")
    assert Diagnosis((good, note)).ok
    diagnosis = Diagnosis((good, note, bad))
    assert not diagnosis.ok
    assert diagnosis.lines == [
        "ok    torch: 2.13.0",
        "ok    ray: not installed",
        "      -> pip install ray",
        "FAIL  small: broken",
        "      -> mend it",
    ]
    found = json.loads(json.dumps(diagnosis.as_dict()))
    assert found["ok"] is False
    assert [each["part"] for each in found["findings"]] == ["torch", "ray", "small"]
    assert found["findings"][0]["values"] == {"a": 1}


def test_an_error_is_one_line_without_folders_user_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/Alice B"))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(platform, "node", lambda: "ward-7")
    text = "weights at /home/Alice B/x/model.pt or '/scratch/alice/y/model.pt',\n as alice on ward-7 (malice, a/b, 1/2)"
    assert told(ValueError(text)) == "ValueError: weights at model.pt or 'model.pt', as USER on HOST (malice, a/b, 1/2)"


def test_an_error_is_told_where_the_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(platform, "node", lambda: "")
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert told(OSError("no room in /tmp/x/y")) == "OSError: no room in y"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert told(OSError("no room in /tmp/x/y")) == "OSError: no room in y"
