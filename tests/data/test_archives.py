"""An archive writes nothing outside the folder that it is unpacked to: what downloads rely on MONAI for."""

import io
import tarfile
from pathlib import Path

import pytest
from monai.apps.utils import HashCheckError, extractall

from unoise_monai.data import download_task


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


def archive(path: Path, *members: tarfile.TarInfo) -> Path:
    """A harmless file, then ``members``, each of the content ``harm``."""
    with tarfile.open(path, "w") as tar:
        for info in (member("Task/good.txt"), *members):
            tar.addfile(info, io.BytesIO(b"harm") if info.isfile() else None)
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_an_ordinary_archive_is_unpacked(tmp_path: Path) -> None:
    extractall(archive(tmp_path / "Task.tar"), tmp_path / "out")
    assert files(tmp_path / "out") == {"Task/good.txt"}


@pytest.mark.parametrize("case", ["up", "deep", "absolute", "symlink", "hard link"])
def test_members_that_escape_are_refused(tmp_path: Path, case: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine", encoding="utf-8")
    members = {
        "up": [member("../outside/mine.txt")],
        "deep": [member("Task/a/../../../outside/mine.txt")],
        "absolute": [member(str(outside / "mine.txt"))],
        "symlink": [member("Task/link", tarfile.SYMTYPE, str(outside)), member("Task/link/mine.txt")],
        "hard link": [member("Task/link", tarfile.LNKTYPE, "../../outside/mine.txt"), member("Task/link")],
    }[case]
    bad = archive(tmp_path / "Task.tar", *members)
    with pytest.raises(ValueError, match=r"Unsafe path|link detected"):
        extractall(bad, tmp_path / "out")
    assert (outside / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert files(outside) == {"mine.txt"}
    assert files(tmp_path / "out") <= {"Task/good.txt"}


def test_devices_and_pipes_are_left_out(tmp_path: Path) -> None:
    bad = archive(tmp_path / "Task.tar", member("Task/pipe", tarfile.FIFOTYPE), member("Task/disk", tarfile.BLKTYPE))
    extractall(bad, tmp_path / "out")
    assert files(tmp_path / "out") == {"Task/good.txt"}


def test_a_download_that_is_not_the_published_one_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MONAI asks the server for the file's name, even where it is there.
    monkeypatch.setattr("monai.apps.utils.get_filename_from_url", lambda url: url.rpartition("/")[2])
    archive(tmp_path / "Task04_Hippocampus.tar", member("../harm.txt"))
    with pytest.raises(HashCheckError):
        download_task("Task04_Hippocampus", tmp_path)
    assert files(tmp_path) == {"Task04_Hippocampus.tar"}
