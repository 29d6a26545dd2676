"""Bundles of the checkout run, and those that the user has listed as they are; nothing else does."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from unoise_monai import bundle as trust
from unoise_monai.bundle import (
    UntrustedBundle,
    check_trust,
    file_sha256,
    is_trusted,
    listing,
    shipped_bundles,
    trust_list,
)

ROOT = Path(__file__).parents[1]

needs_tools = pytest.mark.skipif(
    not (shutil.which("sha256sum") and shutil.which("find")), reason="sha256sum and find are not installed"
)


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trust list of these tests, empty."""
    path = tmp_path / "trusted"
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(path))
    return path


def bundle(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text("a: 1\n", encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text("{}\n", encoding="utf-8")
    return folder


def entries(folder: Path) -> str:
    """As sha256sum writes them."""
    files = sorted((folder / "configs").iterdir())
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}\n" for file in files)


def test_shipped_bundles_are_trusted_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shipped_bundles()
    assert [path.name for path in shipped] == sorted(path.name for path in (ROOT / "bundles").iterdir())
    monkeypatch.chdir(tmp_path)
    for path in shipped:
        check_trust(path)
    (tmp_path / "link").symlink_to(shipped[0])
    check_trust("link")


def test_neither_name_nor_working_folder_earn_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    path = tmp_path / "bundles" / "hippocampus_mr_unoise"
    shutil.copytree(ROOT / "bundles" / path.name / "configs", path / "configs")
    monkeypatch.chdir(tmp_path)
    for name in (path, f"bundles/{path.name}", ROOT / "bundles" / ".." / os.path.relpath(path, ROOT)):
        assert not is_trusted(name)


def test_a_shipped_folder_must_hold_its_own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "SHIPPED", tmp_path / "checkout" / "bundles")
    mine, other = bundle(trust.SHIPPED / "mine"), bundle(tmp_path / "other")
    assert not is_trusted(mine), "the package is installed without its checkout"
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert is_trusted(mine)
    (trust.SHIPPED / "whole").symlink_to(other)
    assert not is_trusted(trust.SHIPPED / "whole")
    (trust.SHIPPED / "half").mkdir()
    (trust.SHIPPED / "half" / "configs").symlink_to(other / "configs")
    assert not is_trusted(trust.SHIPPED / "half")
    (mine / "configs" / "extra.yaml").symlink_to(other / "configs" / "inference.yaml")
    assert not is_trusted(mine)


def test_the_refusal_says_what_why_and_how(tmp_path: Path, listed: Path) -> None:
    path = bundle(tmp_path / "theirs")
    with pytest.raises(UntrustedBundle, match=r"bundle \S*theirs must be trusted before it runs") as caught:
        check_trust(path)
    for part in (str(path), "its configs can run any code as you", "--trust-bundle", str(listed)):
        assert part in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "changed" not in str(caught.value)


@needs_tools
def test_the_command_for_anybody_lists_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path / "theirs")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for named in (True, False):
        if not named:
            monkeypatch.delenv("UNOISE_TRUSTED_BUNDLES")
        assert not is_trusted(path)
        assert str(tmp_path) not in listing()
        subprocess.run(["bash", "-c", listing().replace("BUNDLE)", "theirs)")], check=True)
        assert is_trusted(path)


@needs_tools
def test_the_command_of_the_refusal_lists_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "no folder yet" / "trusted"))
    path = bundle(tmp_path / "with a space's")
    for change in (1, 2):
        with pytest.raises(UntrustedBundle) as caught:
            check_trust(path)
        subprocess.run(["bash", "-c", str(caught.value).splitlines()[-1]], check=True)
        check_trust(path)
        # The second round: a bundle that has changed is asked for again, and may be listed again.
        (path / "configs" / "inference.yaml").write_text(f"b: {change}\n", encoding="utf-8")
        with pytest.raises(UntrustedBundle, match=r"\(changed since it was listed: inference\.yaml\)"):
            check_trust(path)


def test_every_config_must_be_listed_as_it_is(tmp_path: Path, listed: Path) -> None:
    path = bundle(tmp_path / "theirs")
    listed.write_text(f"# mine\n\n{entries(path)}", encoding="utf-8")
    check_trust(path)
    (tmp_path / "link").symlink_to(path)
    check_trust(tmp_path / "link")
    (path / "configs" / "more").mkdir()
    (path / "configs" / "more" / "net.yaml").write_text("b: $1\n", encoding="utf-8")
    with pytest.raises(UntrustedBundle):
        check_trust(path)
    (path / "configs" / "more" / "net.yaml").unlink()
    check_trust(path)


@pytest.mark.parametrize("deep", [False, True])
def test_linked_folders_are_refused(tmp_path: Path, listed: Path, deep: bool) -> None:
    """What lies behind one is not searched, but a config can name it."""
    path = bundle(tmp_path / "theirs")
    listed.write_text(entries(path), encoding="utf-8")
    check_trust(path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "net.yaml").write_text("b: $1\n", encoding="utf-8")
    home = path / "configs" / "deep" if deep else path / "configs"
    home.mkdir(exist_ok=True)
    (home / "more").symlink_to(tmp_path / "far")
    name = "configs/deep/more" if deep else "configs/more"
    with pytest.raises(UntrustedBundle, match=rf"theirs must hold its configs itself, got a link to a folder: {name}$"):
        check_trust(path)


def test_neither_the_same_configs_elsewhere_nor_a_folder_without_are_trusted(tmp_path: Path, listed: Path) -> None:
    listed.write_text(entries(bundle(tmp_path / "one")), encoding="utf-8")
    for folder in (bundle(tmp_path / "two"), tmp_path, tmp_path / "absent"):
        assert not is_trusted(folder)


@pytest.mark.parametrize(
    "line", ["/some/bundle", f"{'a' * 64}  bundle/configs/inference.yaml", f"{'a' * 63}  /b", "a /b"]
)
def test_a_bad_line_of_the_list_is_named(tmp_path: Path, listed: Path, line: str) -> None:
    path = bundle(tmp_path / "theirs")
    listed.write_text(f"# mine\n{line}\n{entries(path)}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"trusted, line 2 must be a SHA-256 and an absolute path, got '"):
        check_trust(path)


def test_the_list_lies_in_the_home_folder_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNOISE_TRUSTED_BUNDLES")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust_list() == tmp_path / ".config" / "unoise" / "trusted_bundles"


def test_without_a_home_folder_nothing_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UNOISE_TRUSTED_BUNDLES")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UntrustedBundle, match=r"the trust list must be named in \$UNOISE_TRUSTED_BUNDLES"):
        check_trust(bundle(tmp_path / "theirs"))


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 7])
def test_file_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
