"""What a finished run left in its output, as the table and the pages of its cases."""

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from threading import Lock
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from unoise_monai.atomic import atomic_path
from unoise_monai.handlers.savers import QUANTITIES
from unoise_monai.render.slices import DECILES, most_important
from unoise_monai.runs.records import Records
from unoise_monai.runs.save import VOLUME, case_values, file_hashes, ordered

BINS = 20
COLOURS = {"inside": "#b4450b", "outside": "#1d63b8", "chance": "#8a909c", "soft": "#59616f", "line": "#dfe3ea"}
"""Of the style sheet's variables, in light; the page's own take their place."""
STYLES: dict[str, dict[str, Any]] = {
    "inside": {"linewidth": 2.2},
    "outside": {"linewidth": 2.2, "dashes": (3, 2)},
    "chance": {"linewidth": 1.2},
}
"""Of lines, by the name of their colour."""
PERCENT = {"xlim": (0, 100), "ylim": (0, 100)}
ONE_AT_A_TIME = Lock()
"""Settings of matplotlib are those of the whole process."""


class Chart(NamedTuple):
    """A chart, as a picture and as the table of its values."""

    title: str
    note: str
    svg: str
    """What follows ``<svg`` on a page, whose style sheet gives the colours in light and in dark."""
    heads: list[str]
    rows: list[list[str]]


def charts(importance: NDArray[Any], segmentation: NDArray[Any]) -> list[Chart]:
    """The two charts of a case, none where the segmentation is empty or fills the volume.

    Importance, 0 to 1, and class indices are ``(X, Y, Z)``; all classes above 0 count as inside.
    """
    inside = segmentation > 0
    if not inside.any() or inside.all():
        return []
    within, without = (100 * values for values in histograms(importance, inside))
    share, found = (100 * values for values in coverage(importance, inside))
    return [
        draw(
            "How important are the voxels?",
            "Share of the voxels of each importance, among those that were segmented and among all others.",
            (np.arange(BINS) + 0.5) / BINS,
            {"segmented": ("inside", within), "not segmented": ("outside", without)},
            {"xlabel": "importance", "ylabel": "share of voxels (%)", "xlim": (0, 1), "ylim": (0, None)},
        ),
        draw(
            "Do the most important voxels hold the segmentation?",
            "Share of the segmented voxels that are among the most important ones of the volume. A map that knows "
            "nothing of the segmentation follows the thin line.",
            share,
            {"this map": ("inside", found), "chance": ("chance", share)},
            {"xlabel": "most important voxels (%)", "ylabel": "segmented voxels among them (%)", **PERCENT},
        ),
    ]


def histograms(importance: NDArray[Any], inside: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Shares of the voxels in 20 equal steps of importance from 0 to 1, inside and outside; each sums to 1."""
    sides = (importance[inside], importance[~inside])
    return [np.histogram(values, bins=BINS, range=(0, 1))[0] / values.size for values in sides]


def coverage(importance: NDArray[Any], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of 0, 10, ... 100% of the volume's voxels, the most important ones: their share, and that of what is inside.

    Voxels as important as the last one are all taken, so the share of a map with ties can be larger.
    """
    visible = [most_important(importance, share) for share in DECILES]
    share = np.array([0.0, *(seen.mean() for seen in visible), 1.0])
    return share, np.array([0.0, *(seen[inside].mean() for seen in visible), 1.0])


def draw(
    title: str, note: str, x: NDArray[Any], lines: Mapping[str, tuple[str, NDArray[Any]]], axes: Mapping[str, Any]
) -> Chart:
    """Draw lines, name to (key of ``STYLES``, y); ``axes`` are matplotlib's properties of these names.

    The same lines give the same bytes: no date, no random names.
    """
    figure = Figure(figsize=(5.4, 3.3), layout="constrained", facecolor="none")
    plot: Any = figure.add_subplot(facecolor="none")
    for name, (style, y) in lines.items():
        look = {"color": COLOURS[style], "solid_capstyle": "round", **STYLES[style]}
        plot.plot(x, y, label=name, clip_on=False, **look)
    plot.set(**axes)
    plot.grid(axis="y", color=COLOURS["line"], linewidth=1)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0, pad=6, labelcolor=COLOURS["soft"])
    for axis in (plot.xaxis, plot.yaxis):
        axis.label.set_color(COLOURS["soft"])
    figure.legend(loc="outside upper left", ncols=len(lines), frameon=False, labelcolor=COLOURS["soft"])
    columns = ([f"{value:.3g}" for value in x], *([f"{value:.1f}" for value in y] for _, y in lines.values()))
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Chart(title, note, inline_svg(figure), [axes["xlabel"], *lines], rows)


def inline_svg(figure: Figure) -> str:
    """A figure as an element of a page, after ``<svg``: without ids, which two charts would share, and with the page's
    fonts and colours."""
    text = io.StringIO()
    with ONE_AT_A_TIME, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unoise"}):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"<defs>.*?</defs>", "", text.getvalue().partition("<svg")[2], flags=re.DOTALL)
    svg = re.sub(r' (?:id|xmlns\S*|width|height|version|clip-path)="[^"]*"| font-family: [^;]*;|<g/>', "", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return svg


THUMBNAIL = (336, 144)
"""Most pixels of a thumbnail, for screens of up to two pixels a CSS pixel."""
UNREADABLE_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of a file that is broken (a PNG by SyntaxError) or claims to be huge."""


class Picture(NamedTuple):
    """A picture of the report: its file's name, and its size in pixels, which keeps a page from jumping."""

    file: str
    width: int
    height: int


def copy_picture(source: Path, target: Path, most: tuple[int, int] = (1800, 1800)) -> Picture:
    """Write a picture as JPEG, at most so many pixels wide and high, without any text that its file holds.

    Raises:
        OSError: or another of ``UNREADABLE_PICTURE``, when ``source`` is no picture or is truncated.
    """
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(most, Image.Resampling.LANCZOS)
    # Rebuilt from its pixels: texts, dates and other fields of the source stay behind.
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    with atomic_path(target) as temporary:
        clean.save(temporary, format="JPEG", quality=88, subsampling=0, optimize=True)
    return Picture(target.name, *clean.size)


logger = logging.getLogger(__name__)

START = r"(?:[A-Za-z]:[\\/]|\\\\|~?/)"
PATH = re.compile(
    # In quotes, as Python's errors name files, it may hold spaces.
    rf"""(?P<quote>['"]){START}[^'"\n]+(?P=quote)"""
    # Elsewhere a slash needs a second one: the first can be of a fraction, a unit or a tag.
    r"""|(?<![\w.])(?:[A-Za-z]:[\\/]|\\\\|~?/[^\s/'"]+/)[^\s'",;)]*"""
)
PRIVATE = ("command", "input", "output", "argv", "cases", "host", "hostname", "user")
"""Keys of ``run.json`` that hold paths, or names of patients or people."""


def without_paths(text: str) -> str:
    """A text in which ``(path)`` stands for absolute paths: they hold names of people, of folders and of machines."""
    return PATH.sub("(path)", text)


def run_facts(output: Path) -> list[tuple[str, str]]:
    """Names and values of ``run.json``, without paths and names; none where there is no such file, or it is broken."""
    try:
        run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(_facts(run, "")) if isinstance(run, dict) else []


def _facts(values: dict[str, Any], start: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{start}{key}".replace("_", " ")
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if key.lower() in PRIVATE:
            continue
        if isinstance(value, dict):
            yield from _facts(value, f"{name}, ")
        elif key == "bundle":
            yield name, PurePath(str(value)).name
        elif value not in (None, "") and not set(str(value)) & set("/\\"):
            yield name, str(value)


Value = float | str
Row = Mapping[str, Value]


@dataclass(frozen=True)
class SiteCase:
    """One case as the report shows it."""

    name: str
    status: str
    """``done`` or ``failed``."""
    values: Row
    """Its row of the table, see `case_values`."""
    stage: str = ""
    """At which it failed; empty where it did not."""
    reason: str = ""
    organs: Sequence[Row] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its files, see `file_hashes`."""
    maps: Mapping[str, Path] = field(default_factory=dict)
    """Name of a quantity or a method to its volume; what the run wrote of the importance first."""
    segmentation: Path | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """``mip``, ``montage``, ``<method>_mip``, ... to PNG files."""

    @property
    def page(self) -> str:
        """Name of its files in the report, without an ending: safe in any file system and any link."""
        return page_name(self.name)


def read_cases(output: Path) -> list[SiteCase]:
    """Every case that is done or has failed, by name, from the record that ``unoise explain`` wrote.

    Files are those that the record names, in ``<case>/<case>_*``; a case whose name is no plain folder name, or whose
    files lie outside of the output, is shown without them. A damaged record counts as none.

    Raises:
        FileNotFoundError: when ``output`` holds no records.
    """
    records = Records(output)
    if not records.folder.is_dir():
        raise FileNotFoundError(f"output must hold the records of a run, got {output.name!r} without any")
    cases: dict[str, SiteCase] = {}
    for record in records.all():
        try:
            if record["status"] in ("done", "failed"):
                cases.setdefault(record["case"], _case(output, record))
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.warning("a record is damaged, and counts as none")
    return list(cases.values())


def _case(output: Path, record: Mapping[str, Any]) -> SiteCase:
    name, failed = record["case"], record["status"] == "failed"
    files = _files(output, name, record.get("files", {}))
    volumes = {key.removesuffix(VOLUME): path for key, path in files.items() if key.endswith(VOLUME)}
    segmentation = volumes.pop("seg", None)
    return SiteCase(
        name=name,
        status=record["status"],
        values=_clean(case_values(record)),
        stage=without_paths(record["stage"]) if failed else "",
        reason=without_paths(record["reason"]) if failed else "",
        organs=[_clean(row) for row in record.get("organs", [])],
        hashes=file_hashes(record),
        maps={key: volumes[key] for key in sorted(volumes, key=lambda key: key not in QUANTITIES)},
        segmentation=segmentation,
        pictures={key.removesuffix(".png"): path for key, path in files.items() if key.endswith(".png")},
    )


def _clean(values: Mapping[str, Any]) -> dict[str, Value]:
    """Numbers, and texts without paths."""
    texts = {key: without_paths(value) for key, value in values.items() if isinstance(value, str) and value}
    return {key: texts.get(key, value) for key, value in values.items() if key in texts or is_number(value)}


def _files(output: Path, name: str, listed: Mapping[str, Any]) -> dict[str, Path]:
    """The rest of each file's name after ``<case>_``, and the file, where it is there."""
    root, start, found = output.resolve(), f"{name}_", {}
    for file in listed if name not in ("", ".", "..") else ():
        path = output / name / file
        plain = file.startswith(start) and not set(f"{name}{file}") & set("/\\\0")
        if plain and path.is_file() and path.resolve().is_relative_to(root):
            found[file.removeprefix(start)] = path
    return found


def page_name(case: str) -> str:
    """A file name for a case's page: the case's own where that is safe everywhere, else a like one, made unique."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", case.lower()).strip("_")[:60] or "case"
    # Case names that only differ in case, or in what was replaced, stay apart by the digest.
    return plain if plain == case else f"{plain}-{hashlib.sha256(case.encode()).hexdigest()[:10]}"


HEADINGS = {
    "dice": ("Dice", True),
    "dice_": ("Dice, {}", True),
    "volume_ml_": ("{}, ml", True),
    "organ_": ("{}, share", False),
    "importance_mean": ("importance, mean", False),
    "importance_p50": ("importance, median", False),
    "importance_p95": ("importance, 95th percentile", False),
    "importance_in_foreground": ("importance inside", True),
    "importance_in_background": ("importance outside", True),
    "voxels": ("voxels", False),
    "spacing_mm": ("voxel size, mm", False),
    "device": ("device", False),
    "peak_memory_gb": ("peak memory, GB", False),
}
"""A key, or its beginning where a class or an organ follows: its heading, and whether the table shows it unasked."""


class Column(NamedTuple):
    """One column of the table."""

    key: str
    label: str
    number: bool
    """Whether all its values are numbers, and so sort as such."""
    shown: bool
    """Unasked."""


class Cell(NamedTuple):
    """A cell's text, and the number that it sorts by (empty for none)."""

    text: str
    value: str


class Tile(NamedTuple):
    """One number above the table."""

    label: str
    value: str
    note: str


def columns(cases: Sequence[SiteCase]) -> list[Column]:
    """The columns that the cases have values for, in the order of ``cohort.csv``."""
    rows = [case.values for case in cases]
    numbers = number_columns(rows)
    return [Column(key, heading(key)[0], key in numbers, heading(key)[1]) for key in ordered(rows)]


def heading(key: str) -> tuple[str, bool]:
    """A key's heading in the table, and whether its column is shown unasked."""
    for start, (words, shown) in HEADINGS.items():
        rest = key.removeprefix(start)
        if (0 < len(rest) < len(key)) if "{}" in words else not rest:
            return words.format(rest.replace("_", " ")), shown
    return key.replace("_", " "), True


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_columns(rows: Sequence[Row]) -> set[str]:
    """The columns that hold numbers, and nothing else where they hold something."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key for key in keys if all(is_number(row[key]) for row in rows if key in row)}


def cell(row: Row, column: Column) -> Cell:
    """A row's cell of a column."""
    value = row.get(column.key, "")
    finite = column.number and not isinstance(value, str) and math.isfinite(value)
    return Cell(show(value) or "-", repr(float(value)) if finite else "")


def show(value: Value) -> str:
    """A text as it is; a number with three digits or so, whole ones whole, and a dash for one that is not finite."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "-"
    if value == round(value) and abs(value) < 1e6:
        return str(round(value))
    if abs(value) >= 1e6 or abs(value) < 5e-4:
        return f"{value:.2e}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3}f}"


def tiles(cases: Sequence[SiteCase]) -> list[Tile]:
    """The numbers above the table: how many cases, how good, how fast."""
    failed = sum(case.status != "done" for case in cases)
    found = [
        Tile("cases done", str(len(cases) - failed), f"of {len(cases)}"),
        Tile("failed", str(failed), "see the reasons below" if failed else "none"),
    ]
    for key in ("dice", "importance_in_foreground", "importance_in_background", "seconds"):
        given = (case.values.get(key, "") for case in cases)
        values = np.array([value for value in given if not isinstance(value, str) and math.isfinite(value)])
        if values.size:
            label = "seconds a case" if key == "seconds" else heading(key)[0]
            mean, median, low, high = (show(float(f(values))) for f in (np.mean, np.median, np.min, np.max))
            found.append(Tile(f"{label}, mean", mean, f"median {median}, {low} to {high}"))
    return found


def class_names(cases: Sequence[SiteCase]) -> list[str]:
    """The classes above 0, in their order, as the volumes of segmentations name them."""
    keys = dict.fromkeys(key for case in cases for key in case.values if key.startswith("volume_ml_"))
    return [key.removeprefix("volume_ml_").replace("_", " ") for key in keys]
