"""Rounds that unveil what a network known to look at two blobs falls back on."""

import logging
import re
from functools import partial
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, Baseline, Score, baseline
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.iterative import FineTuning, IterativeROI, RegionOfInterest
from unoise_monai.attribution.perturbation import Occlusion
from unoise_monai.attribution.targets import class_sum
from unoise_monai.networks import UNet

WIDE = RegionOfInterest(level=0.03, box=3, threshold=0.3)
NOISY = partial(SmoothGrad, method="saliency", samples=3, sigma=0.5)


class EitherBlob(nn.Module):
    """Segments everything where the brightest 3 x 3 (x 3) voxels anywhere are bright enough: one blob will do."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.sum = Conv[Conv.CONV, spatial_dims](1, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.sum.weight)
        self.rectifier = nn.ReLU()
        self.scale = 3.0**spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        found = self.rectifier(self.sum(x)) / self.scale
        return 4 * (found.flatten(1).amax(dim=1) - 0.75).view(-1, 1, *[1] * (x.ndim - 2)).expand_as(x)


def two_blobs(spatial_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, and where its brighter and its darker blob are."""
    first, second = (torch.zeros(1, 1, *[20, 18, 16][:spatial_dims], dtype=torch.bool) for _ in range(2))
    first[(..., *[slice(2, 7)] * spatial_dims)] = True
    second[(..., *[slice(10, 15)] * spatial_dims)] = True
    return 2.0 * first + 1.5 * second, first, second


def unet(spatial_dims: int = 2, in_channels: int = 1, classes: int = 3) -> UNet:
    """Random, but for logits that are 0 in the mean, so that noise has voxels of every class."""
    torch.manual_seed(0)
    network = UNet(spatial_dims, in_channels, classes, depth=2, channel_factor=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        logits = network.eval()(torch.randn(1, in_channels, *[16] * spatial_dims))
        network.head.bias -= logits.transpose(0, 1).flatten(1).mean(dim=1)
    return network


def target_of(network: nn.Module, image: Tensor, label: int = 1) -> Any:
    with torch.no_grad():
        return class_sum(network.eval()(image), label)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_second_round_unveils_the_second_blob(spatial_dims: int) -> None:
    network, (image, first, second) = EitherBlob(spatial_dims), two_blobs(spatial_dims)
    rounds = IterativeROI(network, saliency=Saliency, region=WIDE).rounds(image, 1)
    assert len(rounds) == 2
    for each, blob, other in zip(rounds, (first, second), (second, first), strict=True):
        assert int((each.roi & blob).sum()) > 0.8 * int(blob.sum())
        assert not (each.roi & other).any()
        assert not (each.saliency[other] > 0).any()
    # Hiding one blob leaves the other; hiding both leaves nothing to find.
    assert rounds[0].probability == pytest.approx(float(torch.sigmoid(torch.tensor(4 * 0.75))))
    assert rounds[1].probability < 0.5


def test_stops_below_the_probability_or_after_the_last_round() -> None:
    network, (image, _, _) = EitherBlob(2), two_blobs(2)
    # A third one is too dark to be enough, so what looks for it has gone on too long.
    image[..., 2:7, 10:15] = 0.5
    first, second = IterativeROI(network, Saliency, WIDE).rounds(image, 1)
    lenient = partial(IterativeROI, network, Saliency, WIDE)
    assert len(lenient(min_probability=first.probability + 1e-3).rounds(image, 1)) == 1
    assert len(lenient(min_probability=first.probability - 1e-3).rounds(image, 1)) == 2
    assert len(lenient(max_rounds=1).rounds(image, 1)) == 1
    unveiled = lenient(min_probability=0.0).rounds(image, 1)
    assert len(unveiled) == 3
    assert torch.equal(unveiled[1].roi, second.roi)


def test_no_voxel_is_hidden_twice() -> None:
    network, image = unet(3), torch.randn(1, 1, 10, 12, 8, generator=torch.Generator().manual_seed(0))
    region = RegionOfInterest(level=0.5, threshold=0.3)
    rounds = IterativeROI(network, Saliency, region, min_probability=0.0).rounds(image, 1)
    assert len(rounds) == 5
    total = torch.stack([each.roi for each in rounds]).sum(dim=0)
    assert int(total.max()) == 1
    for index, each in enumerate(rounds):
        assert each.roi.any()
        before = torch.stack([torch.zeros_like(each.roi), *(earlier.roi for earlier in rounds[:index])]).any(dim=0)
        assert not each.saliency[before].any()


def test_the_map_falls_by_round() -> None:
    network, (image, _, _) = EitherBlob(2), two_blobs(2)
    attributor = IterativeROI(network, Saliency, WIDE, max_rounds=4)
    rounds = attributor.rounds(image, 1)
    result = attributor(MetaTensor(image), target_of(network, image))
    expected = rounds[0].roi * 1.0 + rounds[1].roi * 0.75
    assert torch.equal(result.as_tensor(), expected)
    (note,) = result.meta["attribution"]
    assert note["probability"] == pytest.approx(float(torch.sigmoid(torch.tensor(4 * 1.25))))
    assert note["rounds"] == [{"voxels": int(r.roi.sum()), "probability": r.probability} for r in rounds]


class Recording(Attributor):
    """Points at the brightest voxel and remembers what it was shown."""

    name = "recording"
    seen: list[Tensor]

    def maps(self, images: Tensor, score: Score) -> Tensor:
        self.seen.append(images.detach().clone())
        return (images == images.amax()).float().detach() if len(self.seen) < 4 else torch.zeros_like(images[:, :1])


@pytest.mark.parametrize("kind", [-0.7, "minimum", "mean", "blur", "noise", torch.tensor([0.5, -2]).view(1, 2, 1, 1)])
def test_hidden_voxels_become_the_baseline_of_the_whole_image(kind: Baseline) -> None:
    network, image = unet(2, 2), torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    recording = type("Recorder", (Recording,), {"seen": []})
    options = {"hidden": kind, "min_probability": 0.0, "seed": 4}
    rounds = IterativeROI(network, recording, RegionOfInterest(passes=0), **options).rounds(image, 1)
    assert torch.equal(recording.seen[0], image)
    visible = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    for each, shown in zip(rounds, recording.seen[1:], strict=True):
        visible &= ~each.roi
        torch.testing.assert_close(shown, torch.where(visible, image, baseline(image, kind, seed=4)))
    # The fourth map is empty, so there are three rounds, a voxel each.
    assert [int(each.roi.sum()) for each in rounds] == [1, 1, 1]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_saliency_may_count_in_mm(batch: int) -> None:
    network, image = unet(3), torch.randn(batch, 1, 8, 8, 6, generator=torch.Generator().manual_seed(0))
    # Voxels of 0.5, 1.2 and 2 mm, turned and left-handed.
    affine = torch.tensor([[-0.4, -0.72, 0, 3], [-0.3, 0.96, 0, -2], [0, 0, 2, 1], [0, 0, 0, 1]])
    scan = MetaTensor(image, affine=affine)
    region = RegionOfInterest(threshold=0.3)
    in_mm, in_voxels = (
        IterativeROI(network, partial(Occlusion, **options), region, max_rounds=2)
        for options in ({"window": 2.2, "stride": 2.2, "unit": "mm"}, {"window": (4, 2, 1), "stride": (4, 2, 1)})
    )
    target = target_of(network, image)
    maps = in_mm(scan, target)
    assert bool(maps.any())
    torch.testing.assert_close(maps.as_tensor(), in_voxels(image, target).as_tensor())
    first, expected = in_mm.rounds(scan[:1], 1)[0], in_voxels.rounds(image[:1], 1)[0]
    assert torch.equal(first.roi, expected.roi)
    assert type(first.saliency) is Tensor
    with pytest.raises(ValueError, match="unit 'mm' needs an image with an affine"):
        in_mm(image, target)


def test_an_empty_region_ends_it_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    network, image = unet(), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recording = type("Recorder", (Recording,), {"seen": []})
    with caplog.at_level(logging.WARNING):
        result = IterativeROI(network, recording, RegionOfInterest(box=7))(image, target_of(network, image))
    assert not result.any()
    assert "iterative_roi: the saliency outlines no region, so the map is 0 everywhere" in caplog.text


def test_fine_tuning_leaves_the_network_as_it_was() -> None:
    network, image = unet().train(), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network.head.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attributor = IterativeROI(network, Saliency, RegionOfInterest(threshold=0.3), fine_tune=FineTuning(2, 1e-2))
    attributor(image, lambda logits: logits[:, 1].flatten(1).sum(dim=1))
    attributor.rounds(image, 1)
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert [name for name, weight in network.named_parameters() if not weight.requires_grad] == ["head.bias"]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_fine_tuning_teaches_the_copy_what_is_left() -> None:
    network, image = unet(), torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    lenient = partial(IterativeROI, network, Saliency, RegionOfInterest(threshold=0.3), min_probability=0.0)
    plain = lenient().rounds(image, 1)
    own = lenient(fine_tune=FineTuning(steps=20, lr=1e-2)).rounds(image, 1)
    assert torch.equal(own[0].roi, plain[0].roi)
    assert own[0].probability > plain[0].probability + 0.05
    assert not torch.equal(own[1].saliency, plain[1].saliency)
    nowhere = lenient(fine_tune=FineTuning(steps=20, lr=1e-2)).rounds(image, 1, truth=torch.zeros(1, 1, 16, 16))
    assert nowhere[0].probability < plain[0].probability


def test_seeds() -> None:
    network, image = unet(), torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    untouched = torch.rand(2)
    torch.manual_seed(5)
    first, second, other = (IterativeROI(network, seed=seed).rounds(image, 1)[0].saliency for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), untouched)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    expected = SmoothGrad(network, method="guided_backprop", seed=0)(image, target_of(network, image))
    assert torch.equal(first, expected.as_tensor())


def test_tiles_equal_the_whole() -> None:
    network, image = unet(3), torch.randn(1, 1, 50, 37, 40, generator=torch.Generator().manual_seed(0))
    whole, tiled = (
        IterativeROI(network, Saliency, RegionOfInterest(threshold=0.3), max_rounds=2, memory_gb=gb)
        for gb in (None, 0.03)
    )
    assert len(tiled.volume.tiles(tiled.volume.pad(image).requires_grad_()) or []) > 1
    for a, b in zip(whole.rounds(image, 1), tiled.rounds(image, 1), strict=True):
        torch.testing.assert_close(a.saliency, b.saliency)
        # A saliency right at the level may fall on either side by rounding.
        assert int((a.roi ^ b.roi).sum()) <= 2
        assert a.probability == pytest.approx(b.probability, abs=1e-4)


def test_bf16_and_one_channel() -> None:
    network, image = unet(classes=1), torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    attributor = IterativeROI(network, Saliency, RegionOfInterest(threshold=0.3), precision="bf16")
    for label in (0, 1):
        rounds = attributor.rounds(image, label)
        assert all(0 <= each.probability <= 1 for each in rounds)
        assert rounds[0].roi.any()


def test_refuses_images_and_truths() -> None:
    plain, tuning = IterativeROI(unet(), Saliency), IterativeROI(unet(), Saliency, fine_tune=FineTuning())
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=re.escape("image must be one item (1, C, *spatial), got (2, 1, 8, 8)")):
        plain.rounds(image.repeat(2, 1, 1, 1), 1)
    with pytest.raises(ValueError, match="truth is what fine_tune trains towards, it must be None where fine_tune is"):
        plain.rounds(image, 1, truth=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="truth must be one channel on the image's grid"):
        tuning.rounds(image, 1, truth=torch.zeros(1, 1, 8, 6))
    with pytest.raises(ValueError, match="truth must hold classes of the network, 0 to 2, got 3 to 3"):
        tuning.rounds(image, 1, truth=torch.full((1, 1, 8, 8), 3))
