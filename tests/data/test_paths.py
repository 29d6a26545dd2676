"""What lies at a path is told for any path."""

import os
from pathlib import Path

from unoise_monai.data.reading import kind_of


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert kind_of(tmp_path / "file") == kind_of(tmp_path / "link") == "file"
    assert kind_of(tmp_path) == "folder"
    assert kind_of(tmp_path / "pipe") == kind_of(Path("/dev/null")) == "pipe or device"
    for name in ("loop", "gone", "file/below", "a\0b", "\ud800", "x" * 300):
        assert kind_of(tmp_path / name) == ""
