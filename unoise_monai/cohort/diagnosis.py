"""What a diagnosis says, in lines that may be shown to anybody."""

from __future__ import annotations

import getpass
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    section: str
    """``versions``, ``machine`` or ``bundles``."""
    part: str
    text: str
    ok: bool = True
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """What the text says, for programs."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation; it names neither host, user nor folders: people paste it into bug reports."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """For people: a line a finding, and one below it with what to do, where there is something."""
        lines = []
        for finding in self.findings:
            lines.append(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part}: {finding.text}")
            lines += [f"      -> {finding.advice}"] if finding.advice else []
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For programs: ``ok``, and the ``findings`` as dictionaries."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}


def told(error: Exception) -> str:
    """An error in one line, without the folders of paths and the names of user and host."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # The home folder first, for its name may hold a space.
    home = _home()
    text = text.replace(f"{home}/", "~/") if len(home) > 1 else text
    text = re.sub(r"(?<![\w.])~?/(?:[^/\s'\":;,]+/)+", "", text)
    for name, word in ((_user(), "USER"), (platform.node(), "HOST")):
        text = re.sub(rf"\b{re.escape(name)}\b", word, text) if name else text
    return text


def _home() -> str:
    try:
        return str(Path.home())
    # In a container there may be neither $HOME nor the user's entry.
    except RuntimeError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    # In a container the user may be a bare number.
    except (KeyError, OSError, ImportError):
        return ""
