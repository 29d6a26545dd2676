"""Whatever a case is called, its name is a file's on every system, its own, and tells no more than it may."""

import hashlib
import os
import re
import stat
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unoise_monai.data.cases import (
    LONGEST,
    anonymised,
    distinct_names,
    printable,
    read_key,
    safe_name,
    series_name,
    shown_path,
)
from unoise_monai.data.headers import CaseError

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)


@pytest.mark.parametrize(
    "name", ["scan", "P1_ct", "sub-01_ses-2_T1w", "Müller 3", "脳", "a.b", "1.2.840.113619", "x-12"]
)
def test_good_names_stay(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        ("../../etc/x", "_.._etc_x-"),
        ("/etc/passwd", "_etc_passwd-"),
        (".hidden", "hidden-"),
        ("-rf", "rf-"),
        ("=cmd()", "cmd()-"),
        ("a\nb", "a_b-"),
        ("a\u202eb", "a_b-"),
        ("CON", "_CON-"),
        ("Report", "_Report-"),
        ("cohort.csv", "_cohort.csv-"),
        ("nul.txt", "_nul.txt-"),
        ("a\\b:c", "a_b_c-"),
        ("scan ", "scan-"),
        ("e\u0301", "é-"),
        ("\udcff", "_-"),
        ("", "case-"),
        ("..", "case-"),
        ("series-0123456789ab", "series-0123456789ab-"),
    ],
)
def test_bad_names_change(raw: str, start: str) -> None:
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{12}", safe_name(raw))


def is_safe(name: str) -> bool:
    kinds = {unicodedata.category(char)[0] for char in name if char != " "}
    return (
        0 < len(name.encode()) <= LONGEST
        and not kinds & {"C", "Z"}
        and not set(name) & set('/\\<>:"|?*')
        and not name.startswith((".", " ", "-", "=", "+", "@"))
        and not name.endswith((".", " "))
        and name.split(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
        and unicodedata.normalize("NFC", name) == name
    )


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6, unique=True))
def test_any_text(raw: list[str]) -> None:
    names = [safe_name(each) for each in raw]
    assert all(map(is_safe, names)), names
    assert len(set(names)) == len(raw)
    # What came out of it is changed again where it could be taken for another's.
    again = {safe_name(name) for name, text in zip(names, raw, strict=True) if name != text}
    assert not again & set(names)


def test_long_names_are_cut() -> None:
    names = {safe_name("ä" * 80), safe_name("ä" * 81), safe_name("ä" * 80 + "/")}
    assert len(names) == 3
    assert all(is_safe(name) for name in names)


def test_names_differ_on_any_file_system() -> None:
    names = distinct_names(["ct", "CT", "Straße", "STRASSE", "mr"], list("abcde"))
    assert names[-1] == "mr"
    assert len({name.casefold() for name in names}) == 5
    assert all(is_safe(name) for name in names)
    assert distinct_names(["ct", "CT"], ["a", "b"]) == names[:2]
    assert len(set(distinct_names(["ct"] * 3, list("abc")))) == 3
    # A table may name the same file in two rows.
    assert len(set(distinct_names(["ct"] * 3, list("aab")))) == 3


def test_printable() -> None:
    assert printable("a/é b\n\x1b[31m\udcff.nii") == "a/é b??[31m?.nii"


@pytest.mark.parametrize(
    ("path", "shown"),
    [("a/b\n.nii", "a/b?.nii"), ("/a/b.nii", "b.nii"), ("../a/b.nii", "b.nii"), ("a/../../b.nii", "b.nii")],
)
def test_paths_are_shown_below_the_input_only(path: str, shown: str) -> None:
    assert shown_path(PurePath(path)) == shown


def test_a_series_is_called_after_its_uid() -> None:
    assert series_name("1.2.3") == f"series-{hashlib.sha256(b'1.2.3').hexdigest()[:12]}"
    assert series_name("1.2.3") != series_name("1.2.4")


def test_anonymous_names_need_the_key() -> None:
    name = anonymised("Schmidt", b"k" * 32)
    assert re.fullmatch(r"case-[0-9a-f]{12}", name)
    assert name == anonymised("Schmidt", b"k" * 32)
    assert len({name, anonymised("Schmidt", b"l" * 32), anonymised("Schmitt", b"k" * 32)}) == 3


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = read_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key
    assert read_key(tmp_path / "other") != key
    path.write_bytes(b"short")
    with pytest.raises(CaseError, match="key file key must hold 32 bytes, got 5"):
        read_key(os.fspath(path))


def test_a_key_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"key file must be there, got '.*mistyped', which is not$"):
        read_key(tmp_path / "mistyped", make=False)
    assert list(tmp_path.iterdir()) == []
    key = read_key(tmp_path / "key")
    assert read_key(tmp_path / "key", make=False) == key


def test_a_key_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that looks while another makes it, and one that is killed meanwhile, find none."""
    path = tmp_path / "key"

    def end(file: int) -> None:
        assert not path.exists()
        (other,) = tmp_path.iterdir()
        assert stat.S_IMODE(other.stat().st_mode) == 0o600
        raise InterruptedError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", end)
        with pytest.raises(InterruptedError):
            read_key(path)
    assert list(tmp_path.iterdir()) == []
    assert len(read_key(path)) == 32
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_keys_the_first_is_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    monkeypatch.setattr(os, "fsync", lambda file: path.write_bytes(b"k" * 32))
    assert read_key(path) == b"k" * 32
    assert list(tmp_path.iterdir()) == [path]


def test_many_at_once_have_one_key(tmp_path: Path) -> None:
    for turn in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(read_key, [tmp_path / f"{turn}"] * 8))) == 1


def test_a_file_system_without_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(CaseError, match=r"key file must lie where hard links can be made, got '.*key': Operation not"):
        read_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_letters_that_a_file_system_may_take_for_one_are_alike() -> None:
    names = distinct_names(["\ufb01n", "fin", "fan"], ["a", "b", "c"])
    assert names[2] == "fan"
    assert len({unicodedata.normalize("NFKC", name) for name in names}) == 3
