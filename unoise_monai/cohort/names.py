"""Names for cases: safe as files on every system, never two alike, and, where asked for, telling nothing."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from unoise_monai.data.validation import CaseError

LONGEST = 100
"""Bytes of a safe name: files add their quantity and extension, and most file systems end at 255."""
KEY_BYTES = 32
DIGITS = 12
"""Hexadecimal digits of the hashes in names."""
# What Windows refuses, what shells and spreadsheets take for a command at the start, and how our own hashes look.
FORBIDDEN = '/\\<>:"|?*'
RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|report|(cohort|organs|failures)\.csv|run\.json", re.IGNORECASE
)
"""Of systems, and of what lies beside the cases in an output."""
STARTS = " .-=+@~"
HASHED = re.compile(rf".*-[0-9a-f]{{{DIGITS}}}", re.IGNORECASE)


def safe_name(raw: str) -> str:
    """A file name made of any text; two different texts never give the same one.

    It has no separators, control or invisible characters, no leading dot, no name that a system reserves, at most 100
    bytes, in Unicode's form NFC. Where anything had to be changed, a hash of the text is appended.
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
    """Names of which no two are alike, also where a file system ignores case: such get a hash of their source appended.

    Args:
        names: safe ones.
        sources: what tells them apart, such as their paths; of those that are alike, which one it is tells.
    """
    times, seen = Counter(map(_folded, names)), Counter[tuple[str, str]]()
    distinct = []
    for name, source in zip(names, sources, strict=True):
        folded = _folded(name)
        seen[folded, source] += 1
        distinct.append(safe_name(f"{name}/{source} {seen[folded, source]}") if times[folded] > 1 else name)
    return distinct


def printable(text: str) -> str:
    """Text in one line, without characters that no terminal or table shows."""
    return "".join(char if _is_visible(char) else "?" for char in text)


def shown_path(place: PurePath) -> str:
    """A path below the input, in one line; of one that leads elsewhere, its last part: the rest is the machine's."""
    return printable(place.name if place.is_absolute() or ".." in place.parts else place.as_posix())


def series_name(uid: str) -> str:
    """What a DICOM series is called: not as its folder, which in an export is often the patient's name."""
    return f"series-{_digest(uid)}"


def anonymised(name: str, key: bytes) -> str:
    """A name that only those who have ``key`` can lead back to ``name``, by trying names."""
    return f"case-{hmac.new(key, name.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:DIGITS]}"


def read_key(path: str | os.PathLike[str], make: bool = True) -> bytes:
    """The key of `anonymised`.

    Args:
        path: its file.
        make: where there is no such file, make one at random, for its owner's eyes only.

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
    """Write a key that appears whole or not at all, and takes the place of no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only its owner may read such a file.
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
            raise CaseError(
                f"key file must lie where hard links can be made, got {os.fspath(path)!r}: {error.strerror}"
            ) from error


def _is_visible(char: str) -> bool:
    kind = unicodedata.category(char)
    return char == " " or kind[0] not in "CZ"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
