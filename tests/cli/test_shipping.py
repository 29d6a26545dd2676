"""What is built holds all that it should, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from unoise_monai.data.nifti import write_nifti
from unoise_monai.phantoms import abdomen_phantom

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["heart_mr_unoise", "hippocampus_mr_unoise", "pancreas_ct_unoise", "vessel_tof_mra_unoise"]
# Those of this checkout; an environment that sees them does not see the checkout itself.
LIBRARIES = Path(torch.__file__).parents[1]
SAYS = "from unoise_monai.bundle import is_trusted; import sys; print(*(is_trusted(each) for each in sys.argv[1:]))"


def tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git checkout that says which files are the project's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def run(command: list[object], cwd: Path, **variables: str) -> str:
    """What a command says, in the environment of nobody in particular."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "UNOISE_BUNDLES")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_of_the_package_is_named() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "unoise_monai").rglob("__init__.py")]
    assert sorted(named) == sorted([*(".".join(folder.parts) for folder in folders), "unoise_monai.bundles"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, with what a training leaves among them."""
    folder = tmp_path_factory.mktemp("build") / "source"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("models/utility.pt", "models/model_last.pt", "eval/scan.nii.gz", "runs/metrics.csv"):
        left = folder / "bundles" / "hippocampus_mr_unoise" / name
        left.parent.mkdir(exist_ok=True)
        left.touch()
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> dict[str, Path]:
    """The sdist, and the wheel that is made of it."""
    script = "from setuptools import build_meta; import sys; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run([sys.executable, "-c", script, "build_sdist", source.parent], source)
    (sdist,) = source.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(source.parent / "unpacked", filter="data")
    (unpacked,) = (source.parent / "unpacked").iterdir()
    run([sys.executable, "-c", script, "build_wheel", source.parent], unpacked)
    (wheel,) = source.parent.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def environment(folder: Path, *install: object) -> Path:
    """The programs of a new environment, in which the project alone is installed; it borrows the libraries."""
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run([programs / "python", "-c", ask], folder).strip())
    (packages / "libraries.pth").write_text(f"{LIBRARIES}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index"]
    # Or pip takes the libraries' own entry for the project, and leaves it at that.
    run([*pip, "--ignore-installed", "--no-build-isolation", *install], folder)
    return programs


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("installed") / "environment", built["wheel"])


@pytest.mark.slow
def test_the_sdist_is_the_repository(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    made = {"PKG-INFO", "setup.cfg"}
    assert sorted(name for name in names if name not in made and ".egg-info/" not in name) == tracked()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_bundles(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    expected = [name for name in tracked() if name.startswith("unoise_monai/")]
    expected += [f"unoise_monai/{name}" for name in tracked() if name.startswith("bundles/")]
    assert sorted(names) == sorted(expected)


@pytest.mark.slow
def test_an_installed_package_knows_its_bundles_and_trusts_no_copies(installed: Path, tmp_path: Path) -> None:
    listed = dict(line.split("\t") for line in run([installed / "unoise", "bundles"], tmp_path).splitlines())
    assert list(listed) == NAMES
    assert all(Path(folder).is_relative_to(installed.parent) for folder in listed.values())
    copy = shutil.copytree(listed["hippocampus_mr_unoise"], tmp_path / NAMES[0])
    # Beside the package, where a checkout has its own.
    beside = shutil.copytree(copy, Path(listed["hippocampus_mr_unoise"]).parents[2] / "bundles" / NAMES[0])
    nobody = {"UNOISE_TRUSTED_BUNDLES": str(tmp_path / "none")}
    said = run([installed / "python", "-c", SAYS, *listed.values(), copy, beside], tmp_path, **nobody)
    assert said.split() == [*["True"] * 3, "False", "False"]


@pytest.mark.slow
def test_an_installed_package_explains_by_a_bundle_s_name(installed: Path, tmp_path: Path) -> None:
    phantom = abdomen_phantom(0, (40, 36, 32), (1.0, 1.0, 1.0), oblique_degrees=12.0)
    write_nifti(tmp_path / "scan.nii.gz", phantom.image, phantom.affine)
    options = ["--device", "cpu", "--quiet"]
    nobody = {"UNOISE_TRUSTED_BUNDLES": str(tmp_path / "none")}
    run([installed / "unoise", "explain", "hippocampus_mr_unoise", "scan.nii.gz", "out", *options], tmp_path, **nobody)
    (written,) = (tmp_path / "out").rglob("*_importance.nii.gz")
    importance = nib.load(written)
    np.testing.assert_allclose(importance.affine, phantom.affine, atol=1e-5)
    assert 0 <= importance.get_fdata().min() < importance.get_fdata().max() <= 1


@pytest.mark.slow
def test_an_editable_package_has_the_bundles_of_its_checkout(source: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "environment", "--editable", source)
    listed = run([programs / "unoise", "bundles"], tmp_path).splitlines()
    assert listed == [f"{name}\t{source / 'bundles' / name}" for name in NAMES]
    said = run([programs / "python", "-c", SAYS, *(source / "bundles" / name for name in NAMES)], tmp_path)
    assert said.split() == ["True"] * 3
