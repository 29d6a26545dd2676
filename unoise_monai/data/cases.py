"""Cases: their names, their files, and what messages may repeat of them."""

import fnmatch
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from unoise_monai.data.headers import DICOM, EXTENSIONS, VOLUMES, CaseError, kind_of

LONGEST = 100
"""Bytes of a safe name: files add their quantity and extension, and most file systems end at 255."""
KEY_BYTES = 32
DIGITS = 12
"""Hexadecimal digits of the hashes in names."""
HASHED = re.compile(rf".*-[0-9a-f]{{{DIGITS}}}", re.IGNORECASE)
FORBIDDEN = '/\\<>:"|?*'
"""On Windows."""
STARTS = " .-=+@~"
"""What shells and spreadsheets take for a command."""
RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|report|(cohort|organs|failures)\.csv|run\.json", re.IGNORECASE
)
"""By Windows, and for what lies beside the cases in an output."""


def safe_name(raw: str) -> str:
    """A file name, valid on every system, of any text: at most 100 bytes of visible characters in Unicode's form NFC.

    Where anything had to be changed, a hash of the text is appended: two different texts never give the same name.
    """
    text = unicodedata.normalize("NFC", raw)
    name = "".join("_" if char in FORBIDDEN or not _is_visible(char) else char for char in text)
    name = name.lstrip(STARTS).rstrip(" .")
    name = f"_{name}" if RESERVED.fullmatch(name) else name
    if name and name == raw and len(name.encode()) <= LONGEST and not HASHED.fullmatch(name):
        return name
    # Cut by bytes, whole characters only.
    start = name.encode()[: LONGEST - DIGITS - 1].decode(errors="ignore").rstrip(" .") or "case"
    return f"{start}-{_digest(raw)}"


def distinct_names(names: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Safe names of which no two are alike, also where a file system ignores case: such get a hash appended.

    The hash is made of their ``sources``, such as paths; where these are alike too, their order counts.
    """
    folded = [unicodedata.normalize("NFKC", name.casefold()) for name in names]
    times, seen, distinct = Counter(folded), Counter[tuple[str, str]](), []
    for name, fold, source in zip(names, folded, sources, strict=True):
        seen[fold, source] += 1
        distinct.append(safe_name(f"{name}/{source} {seen[fold, source]}") if times[fold] > 1 else name)
    return distinct


def printable(text: str) -> str:
    """Text in one line, without characters that no terminal or table shows."""
    return "".join(char if _is_visible(char) else "?" for char in text)


def shown_path(place: PurePath) -> str:
    """A path below the input, in one line; of one that leads elsewhere, its last part only."""
    return printable(place.name if place.is_absolute() or ".." in place.parts else place.as_posix())


def series_name(uid: str) -> str:
    """The name of a DICOM series, not that of its folder, which in an export is often the patient's."""
    return f"series-{_digest(uid)}"


def anonymised(name: str, key: bytes) -> str:
    """A name from which only those who have ``key`` find ``name`` again, by trying names."""
    return f"case-{hmac.new(key, name.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:DIGITS]}"


def read_key(path: str | os.PathLike[str], make: bool = True) -> bytes:
    """The key of `anonymised` in a file; with ``make``, one at random, for its owner alone, where there is no file.

    Raises:
        CaseError: when there is no such file, it does not hold 32 bytes, or its file system knows no hard links.
        OSError: when it cannot be read or made.
    """
    path = Path(path)
    if make and not path.exists():
        _make_key(path)
    try:
        key = path.read_bytes()
    except FileNotFoundError as error:
        raise CaseError(f"key file must be there, got {os.fspath(path)!r}, which is not") from error
    if len(key) != KEY_BYTES:
        raise CaseError(f"key file {path.name} must hold {KEY_BYTES} bytes, got {len(key)}")
    return key


def _make_key(path: Path) -> None:
    """Write a key that appears whole or not at all, and replaces no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Temporary files are for their owner alone.
    with tempfile.NamedTemporaryFile(prefix=".", suffix=".key", dir=path.parent) as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
        try:
            path.hardlink_to(file.name)
        # Unlike a rename, a link refuses where another run was faster: its key is the key.
        except FileExistsError:
            return
        except OSError as error:
            rule = "key file must lie where hard links can be made"
            raise CaseError(f"{rule}, got {os.fspath(path)!r}: {error.strerror}") from error


def _is_visible(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Case:
    """One volume, to train on or to explain, and the maps that belong to it.

    Args:
        name: in files and tables: a safe file name, unlike any other's in the cohort.
        files: absolute; one file, one a channel, or the slices of a DICOM series in their order; none where there is a
            ``problem``, unless it is that something is not there.
        shown: what messages and tables call its file: its path below the input, or, where that may name the patient
            (DICOM, and cases made anonymous), its own name.
        label: its label map, where there is one.
        organs: a label map of its organs, where there is one.
        series: whether its files are the slices of a DICOM series.
        problem: why it cannot be loaded, where the search has found that; the end of a sentence.
    """

    name: str
    files: tuple[Path, ...]
    shown: str
    label: Path | None = None
    organs: Path | None = None
    series: bool = False
    problem: str = ""

    @classmethod
    def of(cls, item: "Item") -> "Case":
        """The case of an item, such as those of a training's split."""
        image, label = item["image"], Path(item["label"]) if "label" in item else None
        if isinstance(image, (str, os.PathLike)):
            return cls(item["case"], (Path(image),), Path(image).name, label)
        files = tuple(map(Path, image))
        series = not files[0].name.lower().endswith(VOLUMES)
        return cls(item["case"], files, item["case"] if series else files[0].name, label, series=series)

    @property
    def fault(self) -> str:
        """The whole sentence of a ``problem``, else empty."""
        return self.problem and f"{'DICOM series' if self.series else f'file {self.shown}'} {self.problem}"

    def item(self) -> "Item":
        """What MONAI's dictionary transforms take, see `Item`; `LoadCased` refuses one with a ``fault``."""
        several = self.series or len(self.files) > 1
        image = [str(file) for file in self.files] if several else str(next(iter(self.files), self.shown))
        item: Item = {"case": self.name, "image": image}
        if self.label is not None:
            item["label"] = str(self.label)
        return item | ({"fault": self.fault} if self.problem else {})


Item: TypeAlias = dict[str, Any]
"""``case`` (its name), ``image`` (a path, or a list of them for channels or the slices of a series) and, where there
is one, ``label`` (a path)."""


def stem(file_name: str) -> str:
    """A file's name without the extension of a volume."""
    extension = next((each for each in (*EXTENSIONS, ".img") if file_name.lower().endswith(each)), "")
    return file_name[: len(file_name) - len(extension)]


def scrub(text: str, case: Case) -> str:
    """A message in which ``shown`` stands for the paths of a case's files.

    Where ``shown`` is the case's name, because the path may name the patient, it also stands for the names of the files
    and their folders, and for the path of the file that a series was copied to.
    """
    private = case.shown == case.name
    words: dict[str, str] = {}
    for file in [*case.files, *(each for each in (case.label, case.organs) if each is not None)]:
        own = case.shown if private or file in case.files else file.name
        for path in {file, Path(os.path.realpath(file))}:
            words |= {str(path): own, str(path.parent): own if private else "its folder"}
            if private:
                words |= {path.name: own, stem(path.name): own}
    # As Python's errors print them, with escapes. Bare numbers, as slices are often called, count slices, too; those of
    # other files may be patients'.
    words |= {repr(word)[1:-1]: own for word, own in words.items()}
    longest_first = sorted(
        (word for word in words if len(word) > 1 and not (case.series and word.isdigit())), key=len, reverse=True
    )
    if longest_first:
        found = "|".join(map(re.escape, longest_first))
        text = re.sub(rf"(?<!\w)(?:{found})(?!\w)", lambda match: words[match[0]], text)
    return re.sub(rf"[^\s'\":]*/{re.escape(case.name)}\.nii\b", lambda _: case.shown, text) if case.series else text


STATE = ".unoise"
"""Folder of an output that holds the run's own state."""
GONE = "must be there, got nothing, or a link to nothing"


@dataclass(frozen=True)
class Entry:
    """A file that the search has found."""

    path: Path
    """Absolute."""
    place: PurePath
    """Its path below the folder that was searched."""
    problem: str = ""
    """Why it must not be read."""
    folder: bool = False
    """Whether it is a folder that must not be searched."""

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
        if self.is_volume or self.place.name.lower().endswith(DICOM):
            return not self.is_volume
        # A pipe, which has a problem, is never opened.
        if self.problem:
            return False
        try:
            with self.path.open("rb") as file:
                return file.read(132)[128:] == b"DICM"
        except OSError:
            return False


def walk(root: Path, pattern: Sequence[str] = ("**",)) -> list[Entry]:
    """The files below ``root``, sorted, each once: links to folders are not followed.

    Hidden files and folders are left out, such as the ``._`` copies of macOS, and so is the output of a run. Links out
    of ``root`` or to nothing, pipes, devices and folders that cannot be read have a ``problem``.

    Args:
        root: absolute, without links.
        pattern: parts of a path below ``root``, with the wildcards of a shell; ``**`` for any number of folders. Of a
            folder that matches, all files do.
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
        problem = f"must be a folder that can be searched: {error.strerror}"
        entries.append(Entry(Path(error.filename), Path(error.filename).relative_to(root), problem, folder=True))
    return sorted((each for each in entries if matches(each.place.parts, pattern)), key=lambda each: each.place)


def look_at(root: Path, place: Path) -> Entry | None:
    """What lies at a place below ``root``; None where it is a folder, which the search sees anyway."""
    path = root / place
    try:
        target = Path(os.path.realpath(path))
    except ValueError:
        return Entry(path, place, "must be a path that this system can have")
    kind = kind_of(target)
    if not target.is_relative_to(root):
        problem = "must lie within the input's folder, got a path or link that leads out of it"
        return Entry(path, place, problem, folder=kind == "folder")
    problem = {"": GONE, "file": ""}.get(kind, f"must be a regular file, got a {kind}")
    return None if kind == "folder" else Entry(path, place, problem)


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, or one of the folders on its way, fits a pattern of a shell."""
    if not pattern or not parts:
        return not pattern or set(pattern) == {"**"}
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])
