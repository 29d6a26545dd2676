"""``unoise render`` draws what the functions of ``render`` draw."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unoise_monai.cli.main import main
from unoise_monai.render import montage, to_canonical

AFFINE = np.array([[-0.0, 1.5, 0.0, 3.0], [2.0, 0.0, 0.0, 5.0], [0.0, 0.0, 3.0, 7.0], [0, 0, 0, 1.0]])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    draw = np.random.default_rng(0)
    volumes = {
        "scan": draw.normal(size=(12, 10, 8)).astype(np.float32),
        "map": draw.random((12, 10, 8)).astype(np.float32),
        "seg": (draw.random((12, 10, 8)) > 0.7).astype(np.uint8),
    }
    for name, voxels in volumes.items():
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}.nii.gz")
    return {name: tmp_path / f"{name}.nii.gz" for name in volumes}


def test_a_montage_is_the_function_s(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert main(["render", str(files["scan"]), str(files["map"]), str(out), "--segmentation", str(files["seg"])]) == 0
    volumes = {name: to_canonical(np.asarray(nib.load(path).dataobj), AFFINE) for name, path in files.items()}
    expected = montage(
        volumes["scan"][0], volumes["scan"][1], importance=volumes["map"][0], segmentation=volumes["seg"][0]
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out).convert("RGB")), expected)


def test_projections_and_rotation(files: dict[str, Path], tmp_path: Path) -> None:
    scan, values = str(files["scan"]), str(files["map"])
    assert main(["render", scan, values, str(tmp_path / "mip.png"), "--picture", "mip", "--style", "red"]) == 0
    assert main(["render", scan, values, str(tmp_path / "turn.gif"), "--picture", "rotation"]) == 0
    assert np.asarray(Image.open(tmp_path / "mip.png")).std() > 5
    assert Image.open(tmp_path / "turn.gif").n_frames > 1  # type: ignore[attr-defined]


def test_a_map_beyond_0_to_1_needs_scale(files: dict[str, Path], tmp_path: Path) -> None:
    image = nib.load(files["map"])
    nib.save(nib.Nifti1Image(40 * np.asarray(image.dataobj), AFFINE), files["map"])
    arguments = ["render", str(files["scan"]), str(files["map"]), str(tmp_path / "out.png")]
    assert main(arguments) == 2
    assert main([*arguments, "--scale"]) == 0


def test_a_map_of_another_grid_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((11, 10, 8), np.float32), AFFINE), files["map"])
    assert main(["render", str(files["scan"]), str(files["map"]), str(tmp_path / "out.png")]) == 2
