"""Goes through a folder for files that may be volumes, without leaving it."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from unoise_monai.cohort.lock import STATE
from unoise_monai.data.paths import kind_of
from unoise_monai.data.validation import DICOM, EXTENSIONS

VOLUMES = tuple(extension for extension in EXTENSIONS if extension not in DICOM)
DICOM_MAGIC = b"DICM"
GONE = "must be there, got nothing, or a link to nothing"


@dataclass(frozen=True)
class Entry:
    """A file of the tree.

    Args:
        path: absolute.
        place: its path below the folder that was searched.
        problem: why it must not be read.
        folder: whether it is a folder that must not be searched.
    """

    path: Path
    place: PurePath
    problem: str = ""
    folder: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """What a case of it is read from; a file that is only not there is named, so that its results are kept."""
        return (self.path,) if self.problem in ("", GONE) else ()

    @property
    def is_volume(self) -> bool:
        """Whether its name is that of a volume in one file."""
        return self.place.name.lower().endswith(VOLUMES)

    @property
    def is_slice(self) -> bool:
        """Whether its name, or else its content, is that of a DICOM file."""
        if self.is_volume:
            return False
        return self.place.name.lower().endswith(DICOM) or (not self.problem and has_dicom_magic(self.path))


def has_dicom_magic(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == DICOM_MAGIC
    except OSError:
        return False


def walk(root: Path, pattern: Sequence[str] = ("**",)) -> list[Entry]:
    """The files below ``root``, sorted, in which each file is once: links to folders are not followed.

    Hidden files and folders are left out, such as the ``._`` copies of macOS, and so is the output of a run.

    Args:
        root: absolute, without links.
        pattern: parts of a path below ``root``, with the wildcards of a shell; ``**`` for any number of folders. Of a
            folder that matches, all files do.

    Returns:
        Regular files; with a problem: links out of ``root``, links to nothing, pipes and devices with the name of a
        volume, folders that cannot be read.
    """
    closed: list[OSError] = []
    places = []
    for folder, folders, files in os.walk(root, onerror=closed.append):
        here = Path(folder).relative_to(root)
        if STATE in folders:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (root / here / name).is_symlink()]
        places += [here / name for name in (*links, *files) if not name.startswith(".")]
    entries = [entry for place in places if (entry := look_at(root, place)) is not None]
    for error in closed:
        place = Path(error.filename).relative_to(root)
        entries.append(
            Entry(root / place, place, f"must be a folder that can be searched: {error.strerror}", folder=True)
        )
    return sorted((each for each in entries if matches(each.place.parts, pattern)), key=lambda each: each.place)


def look_at(root: Path, place: Path) -> Entry | None:
    """What lies at a place of the tree; None where a link leads to a folder that the search sees anyway."""
    path = root / place
    try:
        target = Path(os.path.realpath(path))
    except ValueError:
        return Entry(path, place, "must be a path that this system can have")
    kind = kind_of(target)
    if not target.is_relative_to(root):
        problem = "must lie within the input's folder, got a path or link that leads out of it"
        return Entry(path, place, problem, folder=kind == "folder")
    if kind == "folder":
        return None
    problems = {"": GONE, "file": ""}
    return Entry(path, place, problems.get(kind, f"must be a regular file, got a {kind}"))


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, or one of the folders on its way, fits a pattern of a shell."""
    if not pattern or not parts:
        return not pattern or set(pattern) == {"**"}
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])
