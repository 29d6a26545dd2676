"""A file is there whole, or it is as it was."""

from pathlib import Path

import pytest

from unoise_monai.atomic import atomic_path


def test_writes_into_missing_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "map.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "map.png"
    target.write_bytes(b"old")
    with pytest.raises(error):
        write_half(target, error)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_failing_replace_removes_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"), atomic_path(tmp_path / "map.png") as temporary:
        temporary.write_bytes(b"new")
    # Nor does a block that writes nothing.
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "map.png"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode
