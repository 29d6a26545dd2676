"""The doctor tries every part, gives advice on a failing one, names nobody, and reaches no network."""

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from small_bundle import CONFIG, write_small_bundle

from unoise_monai.bundle import listing, shipped_bundles
from unoise_monai.inference.explain import Explainer
from unoise_monai.report import doctor
from unoise_monai.report.doctor import Diagnosis, Finding, diagnose, in_one_line
from unoise_monai.report.site import COMMAND

# The interpreter itself tells of every connection and look-up, whatever library asks for it.
OFFLINE = """
import importlib, json, pkgutil, socket, sys

OUT = ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo")

def refuse(event, arguments):
    if event.startswith("socket.") and event.endswith(OUT):
        print("network:", event, arguments, file=sys.stderr)
        raise ConnectionRefusedError(event)

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except ConnectionRefusedError as error:
    assert str(error).startswith("socket."), error
else:
    sys.exit("the hook does not work")
print("hook works", file=sys.stderr)

import unoise_monai
found = pkgutil.walk_packages(unoise_monai.__path__, "unoise_monai.")
modules = [each.name for each in found if not each.name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
from unoise_monai.report.doctor import diagnose
diagnosis = diagnose()
print(json.dumps({"modules": modules, "lines": diagnosis.lines, **diagnosis.as_dict()}))
"""


@pytest.fixture(scope="module")
def offline() -> subprocess.CompletedProcess[str]:
    """The package imported, each bundle loaded and tried, where any use of a socket is an error."""
    environment = {name: value for name, value in os.environ.items() if name != "UNOISE_BUNDLES"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE], capture_output=True, text=True, env=environment, check=False
    )


def test_nothing_reaches_the_network(offline: subprocess.CompletedProcess[str]) -> None:
    assert offline.returncode == 0, offline.stderr
    calls = offline.stderr.partition("hook works")[2]
    assert "network:" not in calls
    assert len(json.loads(offline.stdout)["modules"]) > 50


def test_every_shipped_bundle_is_tried(offline: subprocess.CompletedProcess[str]) -> None:
    found = json.loads(offline.stdout)
    parts = {each["part"]: each for each in found["findings"]}
    assert [each["part"] for each in found["findings"] if not each["ok"]] == []
    assert found["ok"] is True
    for path in shipped_bundles():
        assert re.fullmatch(r"[0-9a-f]{64}", parts[path.name]["values"]["weights_sha256"])
        assert parts[path.name]["values"]["version"] in parts[path.name]["text"]
        assert parts[f"{path.name}, one small volume"]["values"]["seconds"] > 0
    for package in doctor.REQUIRED:
        assert re.match(r"\d+\.", parts[package]["text"])
    # A wheel's metadata may leave out the build, such as +cu130.
    assert parts["torch"]["text"] in (torch.__version__, torch.__version__.split("+")[0])


def test_neither_user_nor_folders_are_named(offline: subprocess.CompletedProcess[str]) -> None:
    text = "\n".join(json.loads(offline.stdout)["lines"])
    for name in (getpass.getuser(), platform.node()):
        assert not re.search(rf"\b{re.escape(name)}\b", text)
    for folder in (Path.home(), Path.cwd(), *shipped_bundles()):
        assert f"{folder}" not in text


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the parts that are looked at elsewhere."""
    monkeypatch.setattr(doctor, "_versions", lambda: iter(()))
    monkeypatch.setattr(doctor, "_machine", lambda: iter(()))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "is_trusted", lambda folder: True)
    monkeypatch.setattr(doctor, "load_bundle", lambda folder, device: load_trusted(folder, device, trusted=True))
    return write_small_bundle(tmp_path / "small")


load_trusted = doctor.load_bundle


def failing(diagnosis: Diagnosis) -> Finding:
    """The one that fails; it says what to do."""
    (finding,) = (each for each in diagnosis.findings if not each.ok)
    assert finding.advice
    assert not diagnosis.ok
    return finding


@pytest.mark.usefixtures("quiet")
def test_a_bundle_is_loaded_and_tried(small: Path) -> None:
    diagnosis = diagnose([small])
    assert diagnosis.ok
    loaded, tried = diagnosis.findings
    assert loaded.text.startswith("version 0.3.1, trusted, weights there, SHA-256 ")
    assert re.fullmatch(r"40x36x32 voxels in \d+\.\d s on (cpu|cuda)", tried.text)


@pytest.mark.usefixtures("quiet")
def test_an_untrusted_bundle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "none"))
    harm = tmp_path / "harm"
    path = write_small_bundle(tmp_path / "b", CONFIG.replace("- $import torch", f"- $open('{harm}', 'w')"))
    diagnosis = diagnose([path])
    assert diagnosis.lines == [
        "ok    b: not trusted, so not tried",
        f"      -> read its configs, which can run any code as you, then list them, BUNDLE its folder: {listing()}",
    ]
    assert str(tmp_path) not in "".join(diagnosis.lines)
    assert not harm.exists()


@pytest.mark.usefixtures("quiet")
def test_missing_and_damaged_weights_are_lines(small: Path) -> None:
    weights = small / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    finding = failing(diagnose([small]))
    damaged = "ValueError: model.pt must hold a state dict, tensors only: it is truncated or damaged"
    assert (finding.part, finding.text[: len(damaged)]) == ("small", damaged)
    weights.unlink()
    missing = "FileNotFoundError: weights must be at model.pt or model.safetensors, got none"
    assert failing(diagnose([small])).text.startswith(missing)


@pytest.mark.usefixtures("quiet")
def test_a_network_that_fails_is_a_line(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, image: Path) -> None:
        raise RuntimeError(f"CUDA error: no kernel\n image {image}")

    monkeypatch.setattr(Explainer, "__call__", broken)
    finding = failing(diagnose([small]))
    assert finding.part == "small, one small volume"
    assert finding.text == "RuntimeError: CUDA error: no kernel image phantom.nii.gz"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("wrong", ["nan", "shape", "affine"])
def test_a_wrong_importance_is_a_line(small: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    explain = Explainer.__call__

    def spoilt(self: Explainer, image: Path) -> Any:
        found = explain(self, image)
        importance = found.importance
        if wrong == "nan":
            importance[0, 3, 3, 3] = torch.nan
        elif wrong == "shape":
            importance = importance[:, 1:]
        else:
            importance.affine[0, 3] += 1
        return found._replace(importance=importance)

    monkeypatch.setattr(Explainer, "__call__", spoilt)
    assert failing(diagnose([small])).text.startswith("RuntimeError: the importance must lie ")


@pytest.mark.usefixtures("quiet")
def test_no_bundle_at_all_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "known_bundles", dict)
    assert "$UNOISE_BUNDLES" in failing(diagnose()).advice


def test_missing_and_broken_packages_are_lines(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    def look_up(package: str) -> str:
        if package in ("itk", "ray", "ipyniivue"):
            raise PackageNotFoundError(package)
        return "1.0"

    def load(module: str) -> None:
        if module == "captum":
            raise OSError("libcaptum.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "version", look_up)
    monkeypatch.setattr(doctor, "import_module", load)
    lines = diagnose([small]).lines
    assert [line for line in lines if line.startswith("FAIL")] == [
        "FAIL  itk: not installed",
        "FAIL  captum: OSError: libcaptum.so: cannot open shared object file",
    ]
    assert lines[lines.index("FAIL  itk: not installed") + 1] == "      -> pip install itk"
    assert "ok    ray: not installed (optional)" in lines
    viewer = lines.index("ok    ipyniivue: not installed (optional)")
    assert f"for the report's 3-D viewer: {COMMAND}" in lines[viewer + 1]


def test_a_full_disk_and_a_broken_gpu_are_lines(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    def no_driver(index: int) -> None:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(doctor, "_versions", lambda: iter(()))
    monkeypatch.setattr(doctor, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5e9, 16e9) if index == 0 else no_driver(index))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e8))
    lines = diagnose([small]).lines
    assert "ok    cuda:0: GPU 0, 16.0 GB, 5.0 GB of it free" in lines
    assert "FAIL  cuda:1: GPU 1: RuntimeError: CUDA driver initialization failed" in lines
    assert "FAIL  temporary folder: 0.2 GB free" in lines

    def gone(folder: str) -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(doctor.shutil, "disk_usage", gone)
    assert any(line.startswith("FAIL  temporary folder: FileNotFoundError") for line in diagnose([small]).lines)


def test_lines_and_dictionary_say_the_same() -> None:
    good = Finding("versions", "torch", "2.13.0", values={"a": 1})
    note = Finding("versions", "ray", "not installed", advice="pip install ray")
    bad = Finding("bundles", "small", "broken", False, "mend it")
    assert Diagnosis((good, note)).ok
    diagnosis = Diagnosis((good, note, bad))
    assert not diagnosis.ok
    assert diagnosis.lines == [
        "ok    torch: 2.13.0",
        "ok    ray: not installed",
        "      -> pip install ray",
        "FAIL  small: broken",
        "      -> mend it",
    ]
    found = json.loads(json.dumps(diagnosis.as_dict()))
    assert found["ok"] is False
    assert [each["part"] for each in found["findings"]] == ["torch", "ray", "small"]
    assert found["findings"][0]["values"] == {"a": 1}


def test_an_error_is_one_line_without_folders_user_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/Alice B"))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(platform, "node", lambda: "ward-7")
    text = "weights at /home/Alice B/x/model.pt or '/scratch/alice/y/model.pt',\n as alice on ward-7 (malice, a/b, 1/2)"
    expected = "weights at model.pt or 'model.pt', as USER on HOST (malice, a/b, 1/2)"
    assert in_one_line(ValueError(text)) == f"ValueError: {expected}"


@pytest.mark.parametrize("home", [Path("/"), RuntimeError("Could not determine home directory.")])
def test_an_error_is_one_line_where_the_user_has_no_name(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = KeyError("getpwuid(): uid not found: 1234")
    monkeypatch.setattr(getpass, "getuser", Mock(side_effect=nobody))
    monkeypatch.setattr(platform, "node", lambda: "")
    monkeypatch.setattr(Path, "home", Mock(side_effect=[home]))
    assert in_one_line(OSError("no room in /tmp/x/y")) == "OSError: no room in y"
