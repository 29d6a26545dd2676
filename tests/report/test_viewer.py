"""The viewer comes from the installed package, whole and with its licence, or the user is told how to get it."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from unoise_monai.report import site as viewer
from unoise_monai.report.site import COMMAND, WIDGET, copy_viewer, deliver


def delivered(script: str) -> list[str]:
    """What a script hands to the page."""
    start, end = "unoise.deliver(", ");\n"
    assert script.startswith(start)
    assert script.endswith(end)
    found: list[str] = json.loads(f"[{script[len(start) : -len(end)]}]")
    return found


def test_the_installed_viewer_and_its_licence(tmp_path: Path) -> None:
    pytest.importorskip("ipyniivue", reason="the viewer's package is not installed")
    version = copy_viewer(tmp_path / "assets")
    assert version == distribution("ipyniivue").version
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == ["niivue.js", "niivue_LICENSE.txt"]
    key, source = delivered((tmp_path / "assets/niivue.js").read_text("utf-8"))
    assert key == "niivue"
    assert source == Path(str(distribution("ipyniivue").locate_file(WIDGET))).read_text("utf-8")
    assert "Redistributions in binary form must reproduce" in (tmp_path / "assets/niivue_LICENSE.txt").read_text()


def test_without_the_package_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(viewer, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="needs ipyniivue, install it by pip install") as caught:
        copy_viewer(tmp_path)
    assert COMMAND in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_viewer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "PACKAGE", "pytest")
    monkeypatch.setattr(viewer, "WIDGET", "pytest/no/widget.js")
    with pytest.raises(FileNotFoundError, match=r"pytest must hold pytest/no/widget.js, version .* does not"):
        copy_viewer(tmp_path)


@pytest.mark.parametrize(
    "text", ['a "quoted" \\ text', "lines\nand \u2028 separators", "</script><script>", "Größe 漢"]
)
def test_any_text_is_delivered_as_it_is(text: str) -> None:
    script = deliver("k", text)
    assert script.isascii()
    assert delivered(script) == ["k", text]
