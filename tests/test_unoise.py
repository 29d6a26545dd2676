"""The utility stays as it was, the noise is the formula's, and what the utility does not need bears more of it."""

import math
from collections.abc import Callable

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet, SegResNet
from torch import Tensor, nn

from unoise_monai.losses import UNoiseLoss
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter, UNoise


def unet(out_channels: int, spatial_dims: int = 2, in_channels: int = 1, depth: int = 2) -> UNet:
    return UNet(spatial_dims, in_channels, out_channels, depth, channel_factor=1)


def with_batch_norm(classes: int = 2) -> nn.Module:
    """A utility that would change its batch norm's statistics in training mode."""
    net = unet(classes)
    net(torch.randn(4, 1, 8, 8) + 1)
    return net


def sides(spatial_dims: int) -> tuple[int, ...]:
    return (8, 4, 12)[:spatial_dims]


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def train_steps(unoise: UNoise, images: Tensor, label: Tensor, steps: int, noise_ratio: float, rate: float) -> None:
    loss = UNoiseLoss(noise_ratio)
    optimizer = torch.optim.Adam(unoise.segmenter.noise_model.parameters(), rate)
    unoise.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(unoise(images), label).backward()
        optimizer.step()


UTILITIES: dict[str, Callable[[], nn.Module]] = {
    "ours, binary": lambda: with_batch_norm(1),
    "ours, three classes": lambda: with_batch_norm(3),
    "BasicUNet with batch norm": lambda: BasicUNet(2, 1, 2, (2, 2, 2, 2, 2, 2), norm="batch"),
    "SegResNet": lambda: SegResNet(2, init_filters=4, in_channels=1, out_channels=2, norm=("group", {"num_groups": 2})),
}


@pytest.mark.parametrize("name", UTILITIES)
def test_training_leaves_every_bit_of_the_utility(name: str) -> None:
    utility = UTILITIES[name]().train()
    before = snapshot(utility)
    unoise = UNoise(ExplainedSegmenter(utility, unet(1)))
    noise_before = snapshot(unoise.segmenter.noise_model)
    unoise.train()
    unoise.segmenter.train()
    assert unoise.segmenter.noise_model.training
    assert not any(module.training for module in utility.modules())
    # A side of 32: BasicUNet halves it four times.
    train_steps(unoise, torch.randn(2, 1, 32, 32), torch.randint(0, 2, (2, 1, 32, 32)), 3, 0.1, 0.01)
    assert all(torch.equal(value, before[name]) for name, value in utility.state_dict().items())
    assert not any(parameter.requires_grad for parameter in utility.parameters())
    assert any(not torch.equal(v, noise_before[k]) for k, v in unoise.segmenter.noise_model.state_dict().items())


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("classes", [1, 3])
def test_forward_is_logits_of_the_clean_image_then_importance(spatial_dims: int, classes: int) -> None:
    utility, noise_model = unet(classes, spatial_dims, 2), unet(1, spatial_dims, 2)
    segmenter = ExplainedSegmenter(utility, noise_model).eval()
    image = torch.randn(2, 2, *sides(spatial_dims))
    kept = image.clone()
    with torch.no_grad():
        output, tolerance = segmenter(image), segmenter.tolerance(image)
        expected = 1 - torch.sigmoid(noise_model(image))
        assert torch.equal(output[:, :-1], utility(image))
    torch.testing.assert_close(output[:, -1:], expected)
    torch.testing.assert_close(tolerance, 1 - output[:, -1:])
    assert output.shape == (2, classes + 1, *sides(spatial_dims))
    assert torch.equal(image, kept)


def test_small_importance_is_not_rounded_to_zero() -> None:
    noise_model = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(noise_model.weight)
    nn.init.constant_(noise_model.bias, 40.0)
    importance = ExplainedSegmenter(unet(2), noise_model)(torch.zeros(1, 1, 4, 4))[:, -1]
    torch.testing.assert_close(importance, torch.full_like(importance, math.exp(-40)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_scripted_equals_eager(mode: bool) -> None:
    segmenter = ExplainedSegmenter(with_batch_norm(3), unet(1)).train(mode)
    scripted = torch.jit.script(segmenter)
    image = torch.randn(2, 1, 8, 8)
    before = snapshot(segmenter)
    eager = segmenter(image)
    # In training the noise model's batch norm counted the batch; the scripted pass starts where the eager one did.
    segmenter.load_state_dict(before)
    torch.testing.assert_close(scripted(image), eager)
    changed = [name for name, value in scripted.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) is mode
    assert all(name.startswith("noise_model.") for name in changed)


@pytest.mark.parametrize(
    ("utility", "noise_model", "stride", "halo"),
    [
        (unet(2, depth=1), unet(1, depth=3), 4, 26),
        (unet(2, depth=2), unet(1, depth=1), 2, 10),
        (nn.Conv2d(1, 2, 1), unet(1), None, None),
    ],
)
def test_grid_and_context_serve_both_parts(
    utility: nn.Module, noise_model: nn.Module, stride: int | None, halo: int | None
) -> None:
    segmenter = ExplainedSegmenter(utility, noise_model)
    assert (segmenter.stride, segmenter.halo) == (stride, halo)


class Spy(nn.Module):
    """A utility that keeps what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


@pytest.mark.parametrize("noise_form", ["scaled", "printed"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_noise_equals_the_formula(noise_form: str, spatial_dims: int) -> None:
    spy, noise_model = Spy(), unet(1, spatial_dims, 3)
    unoise = UNoise(ExplainedSegmenter(spy, noise_model), 0.5, 3.0, noise_form).eval()
    image = torch.randn(2, 3, *sides(spatial_dims))
    kept = image.clone()
    torch.manual_seed(5)
    logits, z = unoise(image)
    torch.manual_seed(5)
    eps = torch.randn_like(image)
    tolerance = torch.sigmoid(noise_model(image)).expand_as(image)
    if noise_form == "scaled":
        expected = image + (0.5 + tolerance * (3.0 - 0.5)) * eps
    else:
        expected = image + tolerance * (3.0 - 0.5) * eps + 0.5
    torch.testing.assert_close(spy.seen, expected)
    assert logits is spy.seen
    assert torch.equal(z, noise_model(image))
    assert torch.equal(image, kept)


def test_channels_share_the_tolerance_and_draw_their_own_noise() -> None:
    """Per voxel the noise over its scale is a standard normal, uncorrelated between the channels."""
    unoise = UNoise(ExplainedSegmenter(Spy(), unet(1, in_channels=2)), 1.0, 5.0)
    torch.manual_seed(0)
    image, tolerance = torch.zeros(1, 2, 200, 200), torch.rand(1, 1, 200, 200)
    eps = unoise.noised(image, tolerance) / (1 + 4 * tolerance)
    assert abs(float(eps.mean())) < 0.02
    assert torch.corrcoef(eps[0].flatten(1)).numpy() == pytest.approx(torch.eye(2).numpy(), abs=0.02)
    assert eps.std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.02)
    assert not torch.equal(unoise.noised(image, tolerance), unoise.noised(image, tolerance))


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_reaches_the_noise_model_only(classes: int, spatial_dims: int) -> None:
    unoise = UNoise(ExplainedSegmenter(unet(classes, spatial_dims), unet(1, spatial_dims))).train()
    image = torch.randn(2, 1, *sides(spatial_dims))
    logits, z = unoise(image)
    assert logits.shape == (2, classes, *sides(spatial_dims))
    # Of the segmentation alone: the gradient comes through the noise.
    (gradient,) = torch.autograd.grad(logits.square().mean(), z, retain_graph=True)
    assert bool(gradient.any())
    label = torch.randint(0, max(classes, 2), (2, 1, *sides(spatial_dims)))
    UNoiseLoss(0.1)((logits, z), label).backward()
    assert all(parameter.grad is None for parameter in unoise.segmenter.utility.parameters())
    assert all(parameter.grad is not None for parameter in unoise.segmenter.noise_model.parameters())
    assert bool(unoise.segmenter.noise_model.head.weight.grad.any())


def test_metatensor_gives_what_a_tensor_gives() -> None:
    unoise = UNoise(ExplainedSegmenter(with_batch_norm(), unet(1))).eval()
    image = torch.randn(1, 1, 8, 8)
    affine = torch.tensor([[0, -2.0, 0, 5], [1, 0, 0.5, 6], [0, 0.3, 3, 7], [0, 0, 0, 1]], dtype=torch.double)
    meta = MetaTensor(image.clone(), affine=affine)
    torch.manual_seed(1)
    plain = unoise(image)
    torch.manual_seed(1)
    for result, expected in zip(unoise(meta), plain, strict=True):
        torch.testing.assert_close(torch.Tensor(result), expected)
    torch.testing.assert_close(torch.Tensor(unoise.segmenter(meta)), unoise.segmenter(image))
    assert torch.equal(meta.affine, affine)
    assert torch.equal(meta.as_tensor(), image)
    loss = UNoiseLoss(0.1)(unoise.train()(meta), MetaTensor(torch.ones(1, 1, 8, 8)))
    loss.backward()
    assert bool(unoise.segmenter.noise_model.head.weight.grad.any())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sigma_min": 5.0, "sigma_max": 1.0}, r"sigma_max must be greater than sigma_min, got 1\.0 and 5\.0"),
        ({"sigma_min": -1.0}, r"sigma_min must be a finite number of at least 0, got -1\.0"),
        ({"sigma_max": math.inf}, r"sigma_max must be a finite number of at least 0, got inf"),
        ({"noise_form": "other"}, r"noise_form must be one of 'scaled', 'printed', got 'other'"),
    ],
)
def test_refuses_bad_arguments(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UNoise(ExplainedSegmenter(unet(2), unet(1)), **changed)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_images_that_are_not_finite(bad: float) -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = bad
    with pytest.raises(ValueError, match=r"image must hold finite values only, got 1 NaN or infinite of 16"):
        UNoise(ExplainedSegmenter(unet(2), unet(1)))(image)


@pytest.mark.parametrize(
    ("noise_model", "got"),
    [(unet(2), r"\(1, 2, 8, 8\)"), (nn.Conv2d(1, 1, 3), r"\(1, 1, 6, 6\)")],
    ids=["two channels", "another grid"],
)
def test_refuses_noise_models_of_another_output(noise_model: nn.Module, got: str) -> None:
    says = rf"noise_model must give one channel on the image's grid, \(1, 1, 8, 8\), got {got}"
    with pytest.raises(ValueError, match=says):
        UNoise(ExplainedSegmenter(unet(2), noise_model))(torch.zeros(1, 1, 8, 8))


class LeftHalf(nn.Module):
    """A utility that segments what is bright, and looks at the left half only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([-4.0, 4.0]).view(2, 1, 1, 1))
            self.conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return self.conv(torch.cat([x[..., :half], torch.zeros_like(x[..., half:]) - 1], dim=-1))


@pytest.mark.parametrize("noise_form", ["scaled", "printed"])
def test_training_finds_the_half_that_the_utility_needs(noise_form: str) -> None:
    """Both halves hold bright and dark voxels; only their texture, strong and faint, tells them apart."""
    torch.manual_seed(3)
    images = torch.randint(0, 2, (8, 1, 8, 16)).float() * 2 - 1
    label = (images > 0).long()
    images[..., 8:] *= 0.25
    label[..., 8:] = 0
    unoise = UNoise(ExplainedSegmenter(LeftHalf(), UNet(2, 1, 1, 1, channel_factor=3)), 0.1, 3.0, noise_form)
    train_steps(unoise, images, label, steps=150, noise_ratio=0.1, rate=0.03)
    with torch.no_grad():
        tolerance = unoise.eval().segmenter.tolerance(images)
    needed, spare = tolerance[..., :7].mean(), tolerance[..., 9:].mean()
    assert float(spare) > 0.8
    assert float(needed) < 0.5
    assert float(spare) > float(needed) + 0.4


def test_importance_keeps_its_resolution_under_autocast() -> None:
    torch.manual_seed(0)
    segmenter = ExplainedSegmenter(nn.Conv3d(1, 2, 1), nn.Conv3d(1, 1, 1)).eval()
    segmenter.noise_model.weight.data.fill_(-1.0)
    segmenter.noise_model.bias.data.zero_()
    image = torch.linspace(5.0, 9.0, 64).view(1, 1, 4, 4, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        importance = segmenter(image)[:, -1]
        tolerance = segmenter.tolerance(image)
    assert importance.dtype == tolerance.dtype == torch.float32
    assert importance.max() < 1
    assert len(importance.unique()) > 32


def test_the_utility_of_a_new_segmenter_is_in_evaluation_mode() -> None:
    utility = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    assert utility.training
    segmenter = ExplainedSegmenter(utility, nn.Conv3d(1, 1, 1))
    assert not any(module.training for module in segmenter.utility.modules())
