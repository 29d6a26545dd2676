"""Texts of a run's tables as the report shows them."""

from __future__ import annotations

import re

START = r"(?:[A-Za-z]:[\\/]|\\\\|~?/)"
PATH = re.compile(
    # In quotes, as Python's errors name files, it may hold spaces.
    rf"""(?P<quote>['"]){START}[^'"\n]+(?P=quote)"""
    # Elsewhere a slash needs a second one: the first can be of a fraction, a unit or a tag.
    r"""|(?<![\w.])(?:[A-Za-z]:[\\/]|\\\\|~?/[^\s/'"]+/)[^\s'",;)]*"""
)


def without_paths(text: str) -> str:
    """A text in which ``(path)`` stands for absolute paths: they tell names of people, of folders and of machines."""
    return PATH.sub("(path)", text)
