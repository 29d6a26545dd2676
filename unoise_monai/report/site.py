"""A finished run as one static folder: a table of cases, a page a case, a 3-D viewer."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from unoise_monai.atomic import atomic_path
from unoise_monai.data.reading import Source
from unoise_monai.report.cases import (
    THUMBNAIL,
    UNREADABLE_PICTURE,
    Picture,
    SiteCase,
    cell,
    charts,
    class_names,
    columns,
    copy_picture,
    number_columns,
    page_name,
    read_cases,
    run_facts,
    show,
    tiles,
)
from unoise_monai.report.volumes import NO_SCAN, Layer, pack, read_layers

PACKAGE = "ipyniivue"
WIDGET = "ipyniivue/static/widget.js"
COMMAND = 'pip install "unoise-monai[report]"'


def copy_viewer(folder: Path) -> str:
    """Copy the viewer, ``niivue.js``, and ``niivue_LICENSE.txt`` into a folder; gives the package's version.

    Browsers refuse modules and requests to pages from disk, but not classic scripts: ``niivue.js`` hands the module
    over as text, of which the page makes a module in memory.

    Raises:
        ModuleNotFoundError: when the package is not installed; the message names the command that installs it.
        FileNotFoundError: when the installed package holds no viewer or no licence.
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
    places = ("licenses", f"{PACKAGE}-{package.version}.dist-info")
    licences = [
        Path(str(path.locate())).read_text(encoding="utf-8")
        for path in package.files or ()
        if "LICENSE" in path.name.upper() and path.parent.name in places
    ]
    if not licences:
        raise FileNotFoundError(f"{PACKAGE} must hold its licence, version {package.version} does not")
    _write(folder / "niivue.js", deliver("niivue", widget.read_text(encoding="utf-8")))
    _write(folder / "niivue_LICENSE.txt", "\n\n".join(licences))
    return package.version


def deliver(key: str, text: str) -> str:
    """A classic script that hands ``text`` to the page under ``key``."""
    # JSON is JavaScript since ECMAScript 2019; ASCII, so that no encoding can go wrong.
    return f"unoise.deliver({json.dumps(key)}, {json.dumps(text)});\n"


PARTS = ("cases", "pictures", "volumes")
"""Folders of the report that hold files of cases."""
WORKERS = 2
"""Cases at once: a large scan takes more than a gigabyte."""


def write_site(
    output: str | Path, scans: Mapping[str, Source] | None = None, viewer: bool = True, progress: bool = True
) -> Path:
    """Write the report of a finished run, ``OUTPUT/report``; gives its ``index.html``, to open in a browser.

    It needs no network and no server, and may be moved or zipped by itself. Written again, it replaces the old one;
    the index comes last. A file of a case that cannot be read is left out, and its page says so.

    Args:
        output: what ``unoise explain`` wrote.
        scans: case to its volume, its folder with one DICOM series, or the files of its slices, shown beneath the
            maps. Cases without one show importance and segmentation alone. Neither its path nor its header reaches
            the report.
        viewer: with the 3-D viewer and the volumes that it shows, some megabytes a case.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: when ``output`` holds no records of a run.
        ModuleNotFoundError: when the viewer is not installed; the message names the command that installs it.
    """
    output = Path(output)
    cases = read_cases(output)
    site = Site(output / "report", cases, scans or {}, viewer)
    site.write_assets()
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        work = pool.map(site.write_case, range(len(cases)))
        thumbnails = list(tqdm(work, total=len(cases), desc="report", unit="case", disable=not progress))
    index = site.write_index(thumbnails, run_facts(output))
    site.remove_old()
    return index


@dataclass
class Site:
    """The folder of a report, and what goes into it."""

    folder: Path
    cases: Sequence[SiteCase]
    scans: Mapping[str, Source]
    viewer: bool

    def __post_init__(self) -> None:
        self.columns = columns(self.cases)
        self.classes = class_names(self.cases)
        self.written: set[Path] = set()
        assets = PackageLoader("unoise_monai.report", "assets")
        self.pages = Environment(
            loader=assets, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self.pages.filters["show"] = show

    def write_assets(self) -> None:
        for name in ("style.css", "table.js", "viewer.js"):
            text = files("unoise_monai.report").joinpath("assets", name).read_text(encoding="utf-8")
            self._write(Path("assets", name), text)
        if self.viewer:
            copy_viewer(self.folder / "assets")

    def write_case(self, number: int) -> Picture | None:
        """Write a case's page, pictures and volumes; gives its thumbnail."""
        case = self.cases[number]
        pictures = {key: found for key in case.pictures if (found := self._picture(case, key)) is not None}
        shown = read_layers(case, self.scans.get(case.name) if self.viewer else None)
        importance, segmentation = shown.importance(), shown.segmentation()
        page = self.pages.get_template("case.html").render(
            case=case,
            previous=self.cases[number - 1] if number else None,
            following=self.cases[number + 1] if number + 1 < len(self.cases) else None,
            cells=[
                (column.label, cell(case.values, column).text)
                for column in self.columns
                # The organs have a table of their own.
                if not (case.organs and column.key.startswith("organ_"))
            ],
            pictures=pictures,
            layers=[self._write_layer(case, layer) for layer in shown.layers] if self.viewer else [],
            classes=self.classes,
            notes=[note for note in shown.notes if self.viewer or note != NO_SCAN],
            factors=shown.factors,
            start=shown.start() if shown.layers else [],
            charts=[] if importance is None or segmentation is None else charts(importance, segmentation.voxels),
            organ_numbers=number_columns(case.organs),
        )
        self._write(Path("cases", f"{case.page}.html"), page)
        return self._picture(case, "mip", ".thumbnail", most=THUMBNAIL) if "mip" in pictures else None

    def write_index(self, thumbnails: Sequence[Picture | None], facts: Sequence[tuple[str, str]]) -> Path:
        """Write the table of cases; ``thumbnails`` in their order."""
        cells = [[cell(case.values, column) for column in self.columns] for case in self.cases]
        rows = list(zip(self.cases, thumbnails, cells, strict=True))
        index = self.pages.get_template("index.html")
        return self._write(
            Path("index.html"), index.render(columns=self.columns, rows=rows, tiles=tiles(self.cases), facts=facts)
        )

    def remove_old(self) -> None:
        """Remove what an earlier report wrote for cases, and this one did not."""
        for part in PARTS:
            for path in (self.folder / part).glob("*.*"):
                if path not in self.written:
                    path.unlink()

    def _write_layer(self, case: SiteCase, layer: Layer) -> dict[str, Any]:
        """Write a layer's volume; gives what the viewer needs to know of it."""
        # A dot is in no page's name: `p1` and `guided_cam` must not meet `p1_guided` and `cam`.
        path = Path("volumes", f"{case.page}.{page_name(layer.key)}.js")
        self._write(path, deliver(layer.key, pack(layer.voxels, layer.affine, layer.kind == "seg")))
        known = {name: getattr(layer, name) for name in ("key", "kind", "title", "low", "high")}
        ends = {"lowest": float(layer.voxels.min()), "highest": float(layer.voxels.max())}
        return {**known, **ends, "file": f"../{path.as_posix()}"}

    def _picture(self, case: SiteCase, key: str, end: str = "", **size: tuple[int, int]) -> Picture | None:
        path = self.folder / "pictures" / f"{case.page}.{page_name(key)}{end}.jpg"
        try:
            picture = copy_picture(case.pictures[key], path, **size)
        except UNREADABLE_PICTURE:
            return None
        self.written.add(path)
        return picture

    def _write(self, path: Path, text: str) -> Path:
        _write(self.folder / path, text)
        self.written.add(self.folder / path)
        return self.folder / path


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
