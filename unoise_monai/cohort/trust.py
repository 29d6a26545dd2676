"""Which bundles may run: a bundle's configs hold expressions and class names, so they can run any code."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[2] / "bundles"
"""The bundles of the source checkout that this package runs from."""
LIST = Path(".config", "unoise", "trusted_bundles")
"""The trust list, in the home folder."""
TRUST_LIST = "UNOISE_TRUSTED_BUNDLES"
"""The environment variable that names another trust list."""


class UntrustedBundle(ValueError):
    """A bundle from elsewhere, which nobody has said to trust; nothing of it has been read."""


def check_trust(bundle: str | os.PathLike[str]) -> None:
    """Refuse a bundle that does not come with the project and is not on the trust list.

    A bundle is on the list where every file of its ``configs`` is, by its path and the SHA-256 of what it holds now.
    The list, ``~/.config/unoise/trusted_bundles`` or the file that $UNOISE_TRUSTED_BUNDLES names, has lines as
    ``sha256sum`` writes them, and comments after ``#``. What the configs import is trusted with them.

    Args:
        bundle: its folder; judged by where it really lies, whatever it is called and however it is reached.

    Raises:
        UntrustedBundle: when it is neither, or a folder within its ``configs`` is a link.
        ValueError: when a line of the trust list cannot be understood.
    """
    folder = Path(bundle).resolve()
    within = sorted((folder / "configs").rglob("*"))
    # The search does not follow them, but a config can name what lies behind.
    if linked := [path.relative_to(folder).as_posix() for path in within if path.is_symlink() and path.is_dir()]:
        raise UntrustedBundle(f"bundle {folder} must hold its configs itself, got a link to a folder: {linked[0]}")
    files = [path for path in within if path.is_file()]
    if files and _shipped(files):
        return
    listed = _listed()
    unlisted = [path for path in files if file_sha256(path) not in listed.get(path.resolve(), ())]
    if files and not unlisted:
        return
    changed = ", ".join(path.name for path in unlisted if path.resolve() in listed)
    raise UntrustedBundle(
        f"bundle {folder} must be trusted before it runs, for its configs can run any code as you"
        f"{f' (changed since it was listed: {changed})' if changed else ''}. Read them, then pass --trust-bundle, or "
        f"trust them as they are for good:\n  {listing(folder)}"
    )


def is_trusted(bundle: str | os.PathLike[str]) -> bool:
    """Whether `check_trust` lets a bundle run.

    Raises:
        ValueError: when a line of the trust list cannot be understood.
    """
    try:
        check_trust(bundle)
    except UntrustedBundle:
        return False
    return True


def trust_list() -> Path:
    """The file that lists the bundles to trust; it need not be there.

    Raises:
        UntrustedBundle: when it is not named and there is no home folder.
    """
    if named := os.environ.get(TRUST_LIST):
        return Path(named)
    try:
        return Path.home() / LIST
    except RuntimeError as error:
        raise UntrustedBundle(f"the trust list must be named in ${TRUST_LIST}, got none and no home folder") from error


def listing(bundle: Path | None = None) -> str:
    """The command that lists a bundle as it is now.

    Args:
        bundle: its folder; without one the command tells no folder of this machine, and BUNDLE stands for the bundle's.
    """
    if bundle is None:
        trusted = f'"${TRUST_LIST}"' if os.environ.get(TRUST_LIST) else f"~/{LIST}"
        configs, make = '"$(realpath BUNDLE)"/configs', f'mkdir -p "$(dirname {trusted})" && '
    else:
        path = trust_list()
        configs, trusted, folder = (shlex.quote(str(each)) for each in (bundle / "configs", path, path.parent))
        make = "" if path.parent.is_dir() else f"mkdir -p {folder} && "
    return f"{make}find -L {configs} -type f -exec sha256sum {{}} + >> {trusted}"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _shipped(files: list[Path]) -> bool:
    # Installed without its checkout, the package may stand beside somebody else's folder of that name.
    checkout = (SHIPPED.parent / "pyproject.toml").is_file()
    return checkout and all(path.resolve().is_relative_to(SHIPPED.resolve()) for path in files)


def _listed() -> dict[Path, set[str]]:
    path = trust_list()
    listed: dict[Path, set[str]] = {}
    if not path.is_file():
        return listed
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if entry is None or not Path(entry[2]).is_absolute():
            raise ValueError(f"{path}, line {number} must be a SHA-256 and an absolute path, got {line!r}")
        listed.setdefault(Path(entry[2]).resolve(), set()).add(entry[1])
    return listed
