"""The deformations never fold, and the loss is the sum that the paper has."""

import re

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from torch import nn

from unoise_monai.losses import DeformationAware, DeformationAwareLoss, FocalTverskyLoss, RandomDeformation
from unoise_monai.losses.segmentation import spline_basis

SIZES = {2: (40, 33), 3: (24, 33, 20)}


def jacobians(field: torch.Tensor) -> np.ndarray:
    """The determinant of the map ``voxel + field`` in every cell of every item, from forward differences."""
    dims = field.shape[1]
    found = []
    for item in field.double().numpy():
        corner = tuple(slice(0, side - 1) for side in item.shape[1:])
        steps = np.stack([np.diff(item, axis=axis + 1)[(slice(None), *corner)] for axis in range(dims)], axis=1)
        matrix = np.moveaxis(steps, (0, 1), (-2, -1)) + np.diag(np.ones(dims))
        found.append(np.linalg.det(matrix))
    return np.stack(found)


@pytest.mark.parametrize("size", [(40, 33), (128, 90), (24, 33, 20), (64, 64, 64)])
@pytest.mark.parametrize("largest", [0.03, None])
def test_no_deformation_folds(size: tuple[int, ...], largest: float | None) -> None:
    """At the paper's displacements, and at the largest that are accepted."""
    torch.manual_seed(len(size))
    largest = 5 * 2 / (max(size) - 1) if largest is None else largest
    deformation = RandomDeformation((5, 7), (largest, largest))
    for _ in range(4):
        determinants = jacobians(deformation(torch.zeros(1, 1, *size)))
        assert determinants.min() > 0
        assert determinants.std() > 1e-3


def test_displacements_too_large_for_the_control_points_are_refused() -> None:
    says = "max_displacement must be at most control_spacing, 5 voxels, got 5.08 voxels on an image of (128, 16)"
    with pytest.raises(ValueError, match=re.escape(says)):
        RandomDeformation(max_displacement=(0.01, 0.08))(torch.zeros(1, 1, 128, 16))


def test_the_jacobian_test_would_see_a_fold() -> None:
    field = torch.zeros(1, 2, 9, 9)
    field[0, 0, 4] = -2.0
    assert jacobians(field).min() < 0


@pytest.mark.parametrize("dims", [2, 3])
def test_displacements_stay_below_their_limit_and_differ_between_items(dims: int) -> None:
    torch.manual_seed(0)
    field = RandomDeformation(max_displacement=(0.03, 0.03))(torch.zeros(2, 3, *SIZES[dims]))
    assert field.shape == (2, dims, *SIZES[dims])
    for axis, side in enumerate(SIZES[dims]):
        highest = float(field[:, axis].abs().max())
        limit = 0.03 * (side - 1) / 2
        assert 0.3 * limit < highest <= limit * (1 + 1e-5)
    assert not torch.allclose(field[0], field[1])


def test_the_first_two_planes_at_each_end_of_the_first_two_axes_stay() -> None:
    torch.manual_seed(1)
    field = RandomDeformation()(torch.zeros(1, 1, 24, 33, 20))
    for axis in (2, 3):
        side = field.shape[axis]
        for plane in (0, 1, side - 2, side - 1):
            assert field.select(axis, plane).abs().max() == 0
        assert field.select(axis, 2).abs().max() > 0
    assert field.select(4, 0).abs().max() > 0


def test_a_constant_velocity_moves_every_voxel_as_far_at_the_border_too() -> None:
    velocity = torch.zeros(1, 3, 6, 7, 8)
    velocity[:, 2] = 1.5
    torch.testing.assert_close(RandomDeformation().integrate(velocity), velocity)


def test_no_displacement_is_the_identity() -> None:
    deformation = RandomDeformation(max_displacement=(0.0, 0.0))
    image = torch.randn(2, 1, 8, 9, 10)
    field = deformation(image)
    assert field.abs().max() == 0
    torch.testing.assert_close(Warp()(image, field), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_seed_gives_the_same_deformation_also_under_autocast(autocast: bool) -> None:
    torch.manual_seed(3)
    expected = RandomDeformation()(torch.zeros(1, 1, 16, 16, 16))
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        field = RandomDeformation()(torch.zeros(1, 1, 16, 16, 16))
    torch.testing.assert_close(field, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("side", "spacing"), [(17, 5), (20, 7), (2, 5)])
def test_spline_basis(side: int, spacing: int) -> None:
    def cubic(t: float) -> float:
        """The cubic B-spline as the fourfold difference of a truncated power."""
        return sum((-1) ** k * c * max(t + 2 - k, 0) ** 3 for k, c in enumerate((1, 4, 6, 4, 1))) / 6

    basis = spline_basis(side, spacing)
    torch.testing.assert_close(basis.sum(dim=1), torch.ones(side))
    for voxel in range(side):
        for point in range(basis.shape[1]):
            assert float(basis[voxel, point]) == pytest.approx(cubic(voxel / spacing - (point - 1)), abs=1e-5)


class TwoScales(nn.Module):
    """A network that gives two scales in training, as UNetMSS does."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 2, stride=2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.fine(x), self.coarse(x)]


def test_the_wrapper_segments_the_image_and_its_deformation() -> None:
    torch.manual_seed(0)
    network, image = TwoScales(), torch.randn(2, 1, 16, 12)
    before = image.clone()
    plain, warped, field = DeformationAware(network, RandomDeformation(max_displacement=(0.1, 0.1)))(image)
    torch.testing.assert_close(plain[0], network.fine(image))
    torch.testing.assert_close(warped[1], network.coarse(Warp(padding_mode="border")(image, field)))
    assert field.abs().max() > 0
    assert torch.equal(image, before)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_is_the_sum_of_its_three_terms(classes: int) -> None:
    torch.manual_seed(0)
    plain, warped = torch.randn(2, 2, classes, 12, 10)[:, :1], torch.randn(2, 2, classes, 12, 10)[:, :1]
    plain, warped = plain[0], warped[0]
    label = torch.randint(0, max(classes, 2), (1, 1, 12, 10)).float()
    field = RandomDeformation(max_displacement=(0.3, 0.3))(plain)
    warp, single = Warp(padding_mode="border"), FocalTverskyLoss()
    if classes == 1:
        shares, p = label, torch.sigmoid(plain)
    else:
        shares, p = torch.cat([(label == k).float() for k in range(3)], dim=1), torch.softmax(plain, dim=1)
    expected = single(plain, label) + single(warped, warp(shares, field)) + single(warped, warp(p, field))
    torch.testing.assert_close(DeformationAwareLoss(single)((plain, warped, field), label), expected)


def test_a_segmentation_that_follows_its_image_has_no_consistency_loss() -> None:
    """A network of single voxels commutes with any deformation that moves whole voxels."""
    torch.manual_seed(0)
    image, field = torch.randn(1, 1, 12, 12), torch.zeros(1, 2, 12, 12)
    field[:, 0] = 1.0
    warped = Warp(padding_mode="border")(image, field)
    loss = DeformationAwareLoss(nn.MSELoss())
    zero = torch.zeros(1, 1, 12, 12)
    supervised = nn.MSELoss()(3 * image, zero) + nn.MSELoss()(3 * warped, zero)
    assert float(loss((3 * image, 3 * warped, field), zero) - supervised) < 1e-3
    assert float(loss((3 * image, 3 * warped.flip(2), field), zero) - supervised) > 0.1


def test_gradients_reach_the_network_through_every_term() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)
    wrapped, loss = DeformationAware(network), DeformationAwareLoss(FocalTverskyLoss())
    loss(wrapped(torch.randn(2, 1, 12, 12)), torch.ones(2, 1, 12, 12)).backward()
    assert float(network.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"control_spacing": (1, 5)}, "control_spacing must be a rising range of at least 2, got (1, 5)"),
        ({"control_spacing": (7, 5)}, "control_spacing must be a rising range of at least 2, got (7, 5)"),
        ({"max_displacement": (-0.1, 0.1)}, "max_displacement must be a rising range inside [0, 1], got (-0.1, 0.1)"),
        ({"max_displacement": (0.1, 2.0)}, "max_displacement must be a rising range inside [0, 1], got (0.1, 2.0)"),
    ],
)
def test_refuses_ranges(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        RandomDeformation(**changed)
