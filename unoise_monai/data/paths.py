"""What lies at a path, whatever the path."""

from __future__ import annotations

import stat
from pathlib import Path


def kind_of(path: Path) -> str:
    """``"file"``, ``"folder"`` or ``"pipe or device"``, links followed; empty where nothing is, or nothing can be."""
    try:
        mode = path.stat().st_mode
    # ValueError: a character that no path of this system can have.
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "pipe or device"
