"""Rounds that unveil what a network falls back on, the regions of them, and the fine-tuning between."""

import copy
import itertools
import logging
import re
from functools import partial
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution import (
    FineTuning,
    IterativeROI,
    Occlusion,
    RegionOfInterest,
    Saliency,
    SmoothGrad,
    class_sum,
)
from unoise_monai.attribution.base import Attributor, Baseline, Score, baseline
from unoise_monai.attribution.iterative import _padded_labels, binarised, proportional_box, smoothed
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet


def drawn(share: float, *size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed)) < share


def naive(mask: Tensor, visible: Tensor, box: tuple[int, ...], passes: int, threshold: float) -> Tensor:
    size = mask.shape[2:]
    found = mask & visible
    for _ in range(passes):
        after = torch.zeros_like(found)
        for at in itertools.product(*map(range, size)):
            ranges = [
                range(max(0, here - side // 2), min(length, here + side // 2 + 1))
                for here, side, length in zip(at, box, size, strict=True)
            ]
            near = [bool(found[(0, 0, *n)]) for n in itertools.product(*ranges) if visible[(0, 0, *n)]]
            after[(0, 0, *at)] = bool(visible[(0, 0, *at)]) and sum(near) / len(near) >= threshold
        found = after
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
@pytest.mark.parametrize(
    ("size", "box"), [((9, 14), (5, 5)), ((13, 6), (3, 11)), ((5, 7, 6), (3, 3, 3)), ((4, 5, 6), (1, 5, 3))]
)
def test_equals_the_loop(size: tuple[int, ...], box: tuple[int, ...], threshold: float) -> None:
    mask, visible = drawn(threshold + 0.1, *size), drawn(0.8, *size, seed=1)
    for passes in (0, 1, 3):
        expected = naive(mask, visible, box, passes, threshold)
        assert torch.equal(smoothed(mask, visible, box, passes, threshold), expected)
        assert passes > 1 or 0 < int(expected.sum()) < int(visible.sum())


def test_a_mean_right_at_the_threshold_is_in() -> None:
    line = torch.tensor([[[[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]]]).bool()
    everything = torch.ones_like(line)
    # A box over all ten voxels, of which three are in.
    assert smoothed(line, everything, (1, 21), 1, 0.3).all()
    assert not smoothed(line, everything, (1, 21), 1, 0.31).any()


def test_below_one_half_regions_grow_with_the_passes_and_the_box() -> None:
    mask = torch.zeros(1, 1, 24, 24, 24, dtype=torch.bool)
    mask[..., 9:14, 9:14, 9:14] = True
    everything = torch.ones_like(mask)

    def voxels(box: int, passes: int) -> int:
        return int(smoothed(mask, everything, box, passes, 0.1).sum())

    assert int(mask.sum()) < voxels(3, 1) < voxels(3, 3) < voxels(5, 3)


def test_the_level_is_a_share_of_the_quantile_of_what_is_above_0() -> None:
    saliency = torch.zeros(1, 1, 10, 20)
    saliency.view(-1)[:100] = torch.arange(1.0, 101)
    saliency.view(-1)[99] = 1e6
    assert int(binarised(saliency, 0.5, 0.99).sum()) == 51
    assert binarised(saliency, 0.5, 1.0).nonzero().tolist() == [[0, 0, 4, 19]]
    assert not binarised(torch.zeros(1, 1, 3, 3), 0.5, 0.99).any()


def test_the_scale_of_a_saliency_is_of_no_matter() -> None:
    saliency = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0)) ** 4
    everything = torch.ones_like(saliency, dtype=torch.bool)
    region = RegionOfInterest(threshold=0.3)(saliency, everything)
    assert region.any()
    assert torch.equal(RegionOfInterest(threshold=0.3)(1e-6 * saliency, everything), region)


def test_hidden_voxels_neither_count_nor_come_back() -> None:
    saliency = torch.ones(1, 1, 8, 8)
    visible = torch.ones_like(saliency, dtype=torch.bool)
    visible[..., :4] = False
    saliency[..., :4] = 100.0
    # All that is visible is equal: the full saliency is theirs, and hidden neighbours outvote none of them.
    assert torch.equal(RegionOfInterest(box=7)(saliency, visible), visible)


def test_the_paper_s_box_in_proportion() -> None:
    assert proportional_box((224, 224)) == (11, 11)
    assert proportional_box((512, 128, 35)) == (11, 7, 3)
    assert all(side % 2 for side in proportional_box(tuple(range(1, 300))))
    mask, everything = drawn(0.6, 20, 90), torch.ones(1, 1, 20, 90, dtype=torch.bool)
    expected = smoothed(binarised(mask.float(), 0.25, 0.99), everything, (3, 5), 3, 0.5)
    assert torch.equal(RegionOfInterest()(mask.float(), everything), expected)


def sample(classes: int, *size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 1, *size, generator=generator),
        torch.randint(0, max(classes, 2), (1, 1, *size), generator=generator),
    )


def by_hand(network: nn.Module, image: Tensor, truth: Tensor, steps: int, lr: float) -> nn.Module:
    """On volumes that lie on the network's grid; the truth may be of a part of it."""
    tuned = copy.deepcopy(network).requires_grad_()
    optimiser = torch.optim.Adam(tuned.parameters(), lr)
    for _ in range(steps):
        logits = tuned(image)[(..., *map(slice, truth.shape[2:]))]
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits, truth.float())
        else:
            loss = F.cross_entropy(logits, truth[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tuned


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [(12, 10), (6, 8, 4)])
def test_equals_a_plain_training_loop(size: tuple[int, ...], classes: int) -> None:
    network = unet(len(size), classes)
    image, truth = sample(classes, *size)
    tuned = copy.deepcopy(network)
    with torch.no_grad():
        FineTuning(steps=3, lr=1e-3)(tuned, image, truth)
    assert_same_weights(tuned, by_hand(network, image, truth, 3, 1e-3))
    assert not torch.equal(tuned.head.weight, network.head.weight)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in tuned.parameters())


def test_tiles_give_the_gradient_of_the_whole() -> None:
    network = unet(3, 3)
    image, truth = sample(3, 50, 37, 40)
    whole, tiled = copy.deepcopy(network), copy.deepcopy(network)
    volume = VolumeNetwork(network, 0.03)
    assert len(volume.tiles(volume.pad(image)) or []) > 1
    FineTuning(steps=1, lr=1e-3)(whole, image, truth)
    FineTuning(steps=1, lr=1e-3)(tiled, image, truth, memory_gb=0.03)
    assert_same_weights(whole, tiled)


def test_padding_has_no_label() -> None:
    network = unet(2, 3)
    image, truth = sample(3, 11, 10)
    tuned = copy.deepcopy(network)
    FineTuning(steps=1, lr=1e-3)(tuned, image, truth)
    assert_same_weights(tuned, by_hand(network, F.pad(image, (0, 0, 0, 1), "replicate"), truth, 1, 1e-3))


@pytest.mark.parametrize(
    ("classes", "side", "value", "says"),
    [
        (3, 8, 3, "hold classes of the network, 0 to 2, got 0 to 3"),
        (3, 8, -1, "hold classes of the network, 0 to 2, got -1 to 0"),
        (1, 8, 2, "hold classes of the network, 0 to 1, got 0 to 2"),
        (3, 6, 0, "be one channel on the image's grid, (1, 1, 8, 8), got (1, 1, 8, 6)"),
    ],
)
def test_refuses_labels_on_another_grid_or_of_no_class(classes: int, side: int, value: int, says: str) -> None:
    network, truth = unet(2, classes).requires_grad_(False), torch.zeros(1, 1, 8, side)
    before = copy.deepcopy(network)
    truth[0, 0, 5, 5] = value
    with pytest.raises(ValueError, match=re.escape(f"truth must {says}")):
        FineTuning()(network, torch.zeros(1, 1, 8, 8), truth)
    assert_same_weights(network, before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_the_label_goes_where_the_image_is() -> None:
    """On the meta device, which holds no values."""
    padded = torch.zeros(1, 1, 8, 12, device="meta")
    assert _padded_labels(torch.zeros(1, 1, 7, 9), padded).device == padded.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_label_in_main_memory_teaches_a_network_on_the_gpu() -> None:
    image, truth = sample(3, 12, 10)
    tuned = unet(2, 3).cuda()
    FineTuning(steps=1, lr=1e-3)(tuned, image.cuda(), truth)
    assert_same_weights(tuned.cpu(), by_hand(unet(2, 3), image, truth, 1, 1e-3))


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


def unet(dims: int = 2, classes: int = 3, channels: int = 1) -> UNet:
    """Random, but for logits that are 0 in the mean, so that noise has voxels of every class."""
    torch.manual_seed(0)
    network = UNet(dims, channels, classes, depth=2, channel_factor=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        logits = network.eval()(torch.randn(1, channels, *[16] * dims))
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
    network, image = unet(2, channels=2), torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3))
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
    first, second, other = (IterativeROI(network, seed=seed).rounds(image, 1)[0].saliency for seed in (0, 0, 1))
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
