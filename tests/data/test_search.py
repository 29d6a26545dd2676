"""A folder is searched whole, once, and never left."""

import os
from pathlib import Path, PurePath

import pytest

from unoise_monai.data.cases import Entry, look_at, matches, walk


def tree(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


def places(root: Path, pattern: tuple[str, ...] = ("**",)) -> list[str]:
    return [entry.place.as_posix() for entry in walk(root, pattern)]


def test_all_files_in_order(tmp_path: Path) -> None:
    tree(tmp_path, "b/2.nii", "b/1.nii", "a/deep/er/x.nii", "c.nii", "b/.hidden.nii", "b/._1.nii", ".git/y.nii")
    assert places(tmp_path) == ["a/deep/er/x.nii", "b/1.nii", "b/2.nii", "c.nii"]
    assert all(entry.path == tmp_path / entry.place and not entry.problem for entry in walk(tmp_path))


def test_the_output_of_a_run_is_no_input(tmp_path: Path) -> None:
    tree(tmp_path, "scans/a.nii", "out/.unoise/lock", "out/a/a_seg.nii.gz", "out/cohort.csv")
    assert places(tmp_path) == ["scans/a.nii"]


def test_links(tmp_path: Path) -> None:
    """Those within the tree are files as others; those out of it are never opened, and loops end."""
    root = tmp_path / "in"
    tree(tmp_path, "in/a.nii", "in/sub/b.nii", "secret/c.nii")
    (root / "again.nii").symlink_to("a.nii")
    (root / "out.nii").symlink_to("../secret/c.nii")
    (root / "outside").symlink_to("../secret")
    (root / "inside").symlink_to("sub")
    (root / "sub" / "loop").symlink_to("..")
    (root / "self.nii").symlink_to("self.nii")
    (root / "gone.nii").symlink_to("nowhere.nii")
    found = {entry.place.as_posix(): entry for entry in walk(root)}
    problems = {name: entry.problem for name, entry in found.items() if entry.problem}
    assert set(found) - set(problems) == {"a.nii", "sub/b.nii", "again.nii"}
    assert set(problems) == {"out.nii", "outside", "self.nii", "gone.nii"}
    assert "leads out of it" in problems["out.nii"]
    assert found["outside"].folder
    assert not found["out.nii"].folder
    assert problems["gone.nii"] == "must be there, got nothing, or a link to nothing"


def test_pipes_and_odd_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (entry,) = walk(tmp_path)
    assert entry.problem == "must be a regular file, got a pipe or device"
    for name in ("a\0b.nii", "\ud800.nii", "x" * 300, "../far.nii", "/etc/passwd"):
        found = look_at(tmp_path, Path(name))
        assert found is not None
        assert found.problem.startswith("must ")


def test_a_folder_that_cannot_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "open/a.nii", "closed/b.nii")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed, found = walk(tmp_path)
    assert (closed.place, closed.folder) == (Path("closed"), True)
    assert closed.problem == "must be a folder that can be searched: Permission denied"
    assert found.place == Path("open/a.nii")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/ct.nii.gz", ["P1/ct.nii.gz", "P2/ct.nii.gz"]),
        ("P1/*", ["P1/ct.nii.gz", "P1/mr.nii.gz"]),
        ("P?", ["P1/ct.nii.gz", "P1/mr.nii.gz", "P2/ct.nii.gz"]),
        ("**/ct.nii.gz", ["P1/ct.nii.gz", "P2/ct.nii.gz", "ct.nii.gz", "deep/er/ct.nii.gz"]),
        ("deep/**", ["deep/er/ct.nii.gz"]),
        ("**/er/**/*.gz", ["deep/er/ct.nii.gz"]),
        ("[!P]*", ["ct.nii.gz", "deep/er/ct.nii.gz"]),
        ("*/*/*/*", []),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    tree(tmp_path, "P1/ct.nii.gz", "P1/mr.nii.gz", "P2/ct.nii.gz", "deep/er/ct.nii.gz", "ct.nii.gz")
    assert places(tmp_path, PurePath(pattern).parts) == expected


def test_many_stars_do_not_hang() -> None:
    assert not matches(tuple("a" * 12), (*("**", "a") * 6, "b"))


def test_what_an_entry_is(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_bytes(b"short")
    kinds = {
        name: Entry(tmp_path / name, Path(name)) for name in ("IM0001", "notes.txt", "x.DCM", "scan.NII.GZ", "gone")
    }
    assert [name for name, entry in kinds.items() if entry.is_volume] == ["scan.NII.GZ"]
    assert [name for name, entry in kinds.items() if entry.is_slice] == ["IM0001", "x.DCM"]
    assert not Entry(tmp_path, Path("folder")).is_slice


def test_what_a_case_may_be_read_from(tmp_path: Path) -> None:
    """Also a file that is only not there: then results of it are no other's."""
    tree(tmp_path, "in/a.nii", "b.nii")
    (tmp_path / "in" / "out.nii").symlink_to("../b.nii")
    files = {
        name: (look_at(tmp_path / "in", Path(name)) or Entry(Path(), Path())).files
        for name in ("a.nii", "gone.nii", "out.nii")
    }
    assert files == {"a.nii": (tmp_path / "in/a.nii",), "gone.nii": (tmp_path / "in/gone.nii",), "out.nii": ()}
