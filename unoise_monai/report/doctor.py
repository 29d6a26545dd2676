"""What is installed, on which machine, with which bundles, and whether a small volume goes through each."""

import getpass
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from unoise_monai.bundle import FOLDERS, Bundle, is_trusted, known_bundles, listing, load_bundle
from unoise_monai.data.nifti import write_nifti
from unoise_monai.inference.memory import default_budget
from unoise_monai.phantoms.abdomen import abdomen_phantom
from unoise_monai.phantoms.vessels import vessel_phantom
from unoise_monai.report.site import COMMAND


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    section: str
    """``versions``, ``machine`` or ``bundles``."""
    part: str
    text: str
    ok: bool = True
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """What is in the text, for programs."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation; it names neither host, user nor folders: people paste it into bug reports."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """For people: a line a finding, and one below it with what to do, where there is something."""
        lines = []
        for finding in self.findings:
            lines.append(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part}: {finding.text}")
            lines += [f"      -> {finding.advice}"] if finding.advice else []
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For programs: ``ok``, and the ``findings`` as dictionaries."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}


def in_one_line(error: Exception) -> str:
    """An error in one line, without the folders of paths and the names of user and host."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # In a container there may be neither $HOME nor the user's entry, or the user may be a bare number.
    home = user = ""
    with suppress(RuntimeError):
        home = str(Path.home())
    with suppress(KeyError, OSError, ImportError):
        user = getpass.getuser()
    # The home folder first, for its name may hold a space.
    text = text.replace(f"{home}/", "~/") if len(home) > 1 else text
    text = re.sub(r"(?<![\w.])~?/(?:[^/\s'\":;,]+/)+", "", text)
    for name, word in ((user, "USER"), (platform.node(), "HOST")):
        text = re.sub(rf"\b{re.escape(name)}\b", word, text) if name else text
    return text


REQUIRED = (
    *("torch", "monai", "numpy", "nibabel", "SimpleITK", "itk", "captum", "safetensors"),
    *("pebble", "filelock", "jinja2", "pillow", "psutil"),
)
MODULES = {"unoise-monai": "unoise_monai", "pillow": "PIL"}
"""Of packages that are imported under another name."""
OPTIONAL = {
    "ray": "for --engine ray: pip install 'unoise-monai[ray]'",
    "ipyniivue": f"for the report's 3-D viewer: {COMMAND}",
}
ENOUGH_DISK_GB = 1.0
SIZE = (40, 36, 32)
"""Of the volume that is tried, in voxels."""


def diagnose(bundles: Sequence[Path] | None = None) -> Diagnosis:
    """Look at the installation, the machine and the bundles; a part that fails is a finding, never an error.

    ``bundles`` are folders, by default all that are known by name. One that is not trusted is not run.
    """
    folders = list(known_bundles().values()) if bundles is None else list(bundles)
    findings = [*_versions(), *_machine(), *(finding for folder in folders for finding in _bundle(folder))]
    if not folders:
        advice = f"run from a source checkout, or name the folders of bundles in ${FOLDERS}"
        findings.append(Finding("bundles", "bundles", "none found", False, advice))
    return Diagnosis(tuple(findings))


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("unoise-monai", *REQUIRED):
        try:
            number = version(package)
            import_module(MODULES.get(package, package))
        except PackageNotFoundError:
            yield Finding("versions", package, "not installed", False, f"pip install {package}")
        # A broken library fails in ways of its own.
        except Exception as error:
            yield Finding("versions", package, in_one_line(error), False, f"pip install --force-reinstall {package}")
        else:
            yield Finding("versions", package, number)
    for package, advice in OPTIONAL.items():
        try:
            yield Finding("versions", package, version(package))
        except PackageNotFoundError:
            yield Finding("versions", package, "not installed (optional)", advice=advice)


def _machine() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            free, total = (size / 1e9 for size in torch.cuda.mem_get_info(index))
            yield Finding("machine", f"cuda:{index}", f"{name}, {total:.1f} GB, {free:.1f} GB of it free")
        except RuntimeError as error:
            text = f"{name}: {in_one_line(error)}"
            yield Finding("machine", f"cuda:{index}", text, False, "use --device cpu meanwhile")
    yield Finding("machine", "device", f"{_device()}{'' if torch.cuda.is_available() else ', no GPU for PyTorch'}")
    yield Finding("machine", "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    size, budget = psutil.virtual_memory().total / 1e9, default_budget(torch.device("cpu")) / 1e9
    yield Finding("machine", "RAM", f"{size:.1f} GB, {budget:.1f} GB for one pass of a network")
    advice = f"free at least {ENOUGH_DISK_GB:g} GB, or name another folder, which may be written, in $TMPDIR"
    try:
        free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    except OSError as error:
        yield Finding("machine", "temporary folder", in_one_line(error), False, advice)
    else:
        ok = free >= ENOUGH_DISK_GB
        yield Finding("machine", "temporary folder", f"{free:.1f} GB free", ok, "" if ok else advice)


def _bundle(folder: Path) -> Iterator[Finding]:
    name = folder.resolve().name
    try:
        if not is_trusted(folder):
            advice = f"read its configs, which can run any code as you, then list them, BUNDLE its folder: {listing()}"
            yield Finding("bundles", name, "not trusted, so not tried", advice=advice, values={"trusted": False})
            return
        bundle = load_bundle(folder, _device())
    except Exception as error:
        advice = "mend or put back what this names, fetch the bundle again, or train it as its docs/README.md says"
        yield Finding("bundles", name, in_one_line(error), False, advice)
        return
    values = {"version": bundle.version, "trusted": True, "weights_sha256": bundle.weights_sha256}
    text = f"version {bundle.version}, trusted, weights there, SHA-256 {bundle.weights_sha256}"
    yield Finding("bundles", name, text, values=values)
    try:
        seconds = _explain_phantom(bundle)
    except Exception as error:
        advice = "try it with --device cpu; where that fails too, report these lines"
        yield Finding("bundles", f"{name}, one small volume", in_one_line(error), False, advice)
    else:
        text = f"{'x'.join(map(str, SIZE))} voxels in {seconds:.1f} s on {_device()}"
        yield Finding("bundles", f"{name}, one small volume", text, values={"seconds": round(seconds, 3)})


def _explain_phantom(bundle: Bundle) -> float:
    """Seconds from a file to its maps; RuntimeError where the importance is not in [0, 1] on the file's grid."""
    task = bundle.task
    draw = vessel_phantom if task is not None and task.top_percentile is not None else abdomen_phantom
    spacing_mm = (1.0, 1.0, 1.0) if task is None else task.spacing_mm
    phantom = draw(0, SIZE, spacing_mm, oblique_degrees=12.0, left_handed=True)
    with tempfile.TemporaryDirectory() as folder:
        write_nifti(Path(folder) / "phantom.nii.gz", phantom.image, phantom.affine)
        start = time.perf_counter()
        importance = bundle.explain(Path(folder) / "phantom.nii.gz").importance
        seconds = time.perf_counter() - start
    if tuple(importance.shape) != (1, *SIZE) or not np.allclose(importance.affine, phantom.affine, atol=1e-5):
        raise RuntimeError(f"the importance must lie on the file's grid {SIZE}, got {tuple(importance.shape[1:])}")
    if not ((importance >= 0) & (importance <= 1)).all():
        raise RuntimeError("the importance must lie in [0, 1], got values outside or NaN")
    return seconds


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
