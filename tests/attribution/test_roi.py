"""The regions of iterative unveiling, and the fine-tuning between its rounds."""

import copy
import itertools

import pytest
import torch
from small import unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.iterative import (
    FineTuning,
    RegionOfInterest,
    _padded_labels,
    binarised,
    proportional_box,
    smoothed,
)
from unoise_monai.inference.tiling import VolumeNetwork


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
    """On volumes that lie on the network's grid."""
    tuned = copy.deepcopy(network).requires_grad_()
    optimiser = torch.optim.Adam(tuned.parameters(), lr)
    for _ in range(steps):
        logits = tuned(image)
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
    padded = F.pad(image, (0, 0, 0, 1), "replicate")
    by_hand_tuned = copy.deepcopy(network).requires_grad_()
    optimiser = torch.optim.Adam(by_hand_tuned.parameters(), 1e-3)
    F.cross_entropy(by_hand_tuned(padded)[:, :, :11], truth[:, 0]).backward()
    optimiser.step()
    assert_same_weights(tuned, by_hand_tuned)


def test_refuses_labels_on_another_grid() -> None:
    network = unet(2, 3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"truth must be one channel on the image's grid, \(1, 1, 8, 8\), got \(1, 1"):
        FineTuning()(network, torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 6))
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("classes", "value", "says"),
    [(3, 3, "0 to 2, got 0 to 3"), (3, -1, "0 to 2, got -1 to 0"), (1, 2, "0 to 1, got 0 to 2")],
)
def test_refuses_labels_that_are_no_class(classes: int, value: int, says: str) -> None:
    network, image = unet(2, classes), torch.zeros(1, 1, 8, 8)
    before = copy.deepcopy(network)
    truth = torch.zeros(1, 1, 8, 8)
    truth[0, 0, 5, 5] = value
    with pytest.raises(ValueError, match=f"truth must hold classes of the network, {says}"):
        FineTuning()(network, image, truth)
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
