"""A network that segments what is bright, known without training, and volumes with something bright in them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
AFFINE[:3, :3] = Rotation.from_euler("xz", [0.2, 0.3]).as_matrix() * [-1.2, 1.1, 2.0]
AFFINE[:3, 3] = 5.0, -3.0, 1.0
"""Oblique, anisotropic and left-handed."""
LIKE = """\
labels: [background, ball]
spacing_mm: null
orientation: null
intensities: null
channels: 1
outputs: softmax
patch_size: [16, 16, 16]
"""


class Bright(nn.Module):
    """Two classes by the mean of 3 x 3 x 3 voxels, in the first channel: below and above 1/2."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 1, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0] = 20 / 27
            self.conv.bias.fill_(-10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([-y, y], dim=1)


def volume(seed: int, size: tuple[int, ...] = (20, 24, 16)) -> tuple[np.ndarray, np.ndarray]:
    """Noise around 0 with a ball of 1 in it, and the ball."""
    rng = np.random.default_rng(seed)
    centre = [rng.uniform(0.35 * side, 0.65 * side) for side in size]
    squares = sum((axis - middle) ** 2 for axis, middle in zip(np.indices(size), centre, strict=True))
    ball = squares < (0.25 * min(size)) ** 2
    return (ball + 0.1 * rng.standard_normal(size)).astype(np.float32), ball.astype(np.uint8)


def write_balls(folder: Path, count: int = 6, label: bool = True) -> Path:
    """A Decathlon folder of such volumes."""
    training = []
    for number in range(count):
        image, ball = volume(number)
        item = {"image": f"imagesTr/ball_{number}.nii.gz", "label": f"labelsTr/ball_{number}.nii.gz"}
        for key, voxels in (("image", image), ("label", ball)):
            (folder / item[key]).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, AFFINE), folder / item[key])
        training.append(item if label else item["image"])
    sections = {"training": training if label else [], "test": [] if label else training}
    (folder / "dataset.json").write_text(json.dumps(sections), encoding="utf-8")
    return folder
