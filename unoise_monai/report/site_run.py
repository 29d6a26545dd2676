"""What ``run.json`` says of a run that a reader of its report may know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

PRIVATE = ("command", "input", "output", "argv", "cases", "host", "hostname", "user")
"""Keys that hold paths, or names of patients or people."""


def run_facts(output: Path) -> list[tuple[str, str]]:
    """Names and values of ``run.json``, without paths and names; none where there is no such file, or it is broken."""
    return list(_facts(_read(output), ""))


def run_quantity(output: Path) -> str | None:
    """What the run has written of the importance, such as ``tolerance``; None where ``run.json`` does not say."""
    settings = _read(output).get("settings")
    quantity = settings.get("quantity") if isinstance(settings, dict) else None
    return quantity if isinstance(quantity, str) else None


def _read(output: Path) -> dict[str, Any]:
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _facts(values: dict[str, Any], start: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if key.lower() in PRIVATE:
            continue
        name = f"{start}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _facts(value, f"{name}, ")
        elif isinstance(value, list):
            yield from _facts({name: ", ".join(map(str, value))}, "")
        elif key == "bundle":
            yield name, PurePath(str(value)).name
        elif value not in (None, "") and not set(str(value)) & set("/\\"):
            yield name, str(value)
