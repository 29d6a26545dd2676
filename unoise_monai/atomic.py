"""Files that appear whole or not at all, however the run ends."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; it takes the place of ``path`` when the block ends without an error.

    The temporary file lies hidden in the same folder, with the same suffixes, by which writers choose a compression.
    It reaches the disk before it is renamed, so ``path`` holds either its old content or all of its new one. When the
    block fails, the temporary file is removed; a process killed outright (SIGKILL) can leave it behind. Missing parent
    folders are created.

    Raises:
        OSError: when the folder or the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Two suffixes, for ".nii.gz". Created by the writer, not by mkstemp, whose files only their owner may read.
    temporary = target.with_name(f".{uuid.uuid4().hex}{''.join(target.suffixes[-2:])}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
