"""The 3-D viewer of the report: NiiVue, as the installed package `ipyniivue` brings it along."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from unoise_monai.atomic import atomic_path

PACKAGE = "ipyniivue"
WIDGET = "ipyniivue/static/widget.js"
COMMAND = 'pip install "unoise-monai[report]"'


def copy_viewer(folder: Path) -> str:
    """Copy the viewer and its licence into a folder, in a form that a page opened from disk can load.

    Browsers refuse modules and requests to pages from disk, but not classic scripts: ``niivue.js`` hands the module
    over as text, of which the page makes a module in memory.

    Args:
        folder: where ``niivue.js`` and ``niivue_LICENSE.txt`` go.

    Returns:
        The package's version.

    Raises:
        ModuleNotFoundError: when the package is not installed; the message says how to install it.
        FileNotFoundError: when the installed package holds no viewer.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"the 3-D viewer needs {PACKAGE}, install it by {COMMAND}, or write the report without the viewer"
        ) from error
    # The package is not imported: that would start its Jupyter side.
    widget = Path(str(package.locate_file(WIDGET)))
    if not widget.is_file():
        raise FileNotFoundError(f"{PACKAGE} must hold {WIDGET}, version {package.version} does not")
    with atomic_path(folder / "niivue.js") as temporary:
        temporary.write_text(deliver("niivue", widget.read_text(encoding="utf-8")), encoding="utf-8")
    with atomic_path(folder / "niivue_LICENSE.txt") as temporary:
        temporary.write_text(_licence(package), encoding="utf-8")
    return package.version


def deliver(key: str, text: str) -> str:
    """A classic script that hands ``text`` to the page under ``key``."""
    # JSON is JavaScript since ECMAScript 2019; ASCII, so that no encoding can go wrong.
    return f"unoise.deliver({json.dumps(key)}, {json.dumps(text)});\n"


def _licence(package: Distribution) -> str:
    texts = [
        Path(str(path.locate())).read_text(encoding="utf-8")
        for path in package.files or ()
        if "LICENSE" in path.name.upper() and path.parent.name in ("licenses", f"{PACKAGE}-{package.version}.dist-info")
    ]
    if not texts:
        raise FileNotFoundError(f"{PACKAGE} must hold its licence, version {package.version} does not")
    return "\n\n".join(texts)
