"""The noise model as a method, and the controls, which ask no network."""

import pytest
import torch
from monai.data import MetaTensor
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution.learned import EdgeMagnitude, Intensity, Learned, Random
from unoise_monai.unoise import ExplainedSegmenter


class Forbidden(nn.Module):
    """Fails when it is run, though it has what is needed to measure a pass."""

    stride, halo = 1, 0

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("asked")


def target(logits: Tensor) -> Tensor:
    raise RuntimeError("asked")


@pytest.mark.parametrize("size", [(8, 6), (6, 4, 8)])
def test_equals_the_segmenter_s_last_channel(size: tuple[int, ...]) -> None:
    segmenter = ExplainedSegmenter(unet(len(size), 3, 2), unet(len(size), 1, 2)).train()
    image = torch.randn(2, 2, *size)
    result = Learned.of(segmenter)(MetaTensor(image), target)
    assert segmenter.noise_model.training
    with torch.no_grad():
        expected = segmenter.eval()(image)[:, -1:]
    torch.testing.assert_close(result.as_tensor(), expected)
    assert not result.requires_grad
    assert [note["method"] for note in result.meta["attribution"]] == ["unoise", "unoise"]


def test_asks_the_noise_model_alone_and_leaves_it_untouched() -> None:
    noise_model = unet(3, 1).train()
    before = {name: value.clone() for name, value in noise_model.state_dict().items()}
    attributor = Learned(Forbidden(), noise_model, memory_gb=1.0)
    attributor(torch.randn(1, 1, 7, 5, 6), target)
    assert attributor.network is noise_model
    assert noise_model.training
    assert all(parameter.requires_grad for parameter in noise_model.parameters())
    for name, value in noise_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_refuses_a_segmentation_network_in_the_noise_model_s_place() -> None:
    with pytest.raises(ValueError, match="noise_model must give one channel, got 3"):
        Learned(Forbidden(), unet(2))(torch.zeros(1, 1, 8, 8), target)


CONTROLS = (Random, Intensity, EdgeMagnitude)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("size", [(7, 6), (5, 4, 6), (5, 1, 4)])
def test_a_map_without_a_pass(control: type, size: tuple[int, ...]) -> None:
    image = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    maps = control(Forbidden())(MetaTensor(image), target)
    assert maps.shape == (2, 1, *size)
    assert float(maps.min()) >= 0
    assert maps.std() > 0
    singles = torch.cat([control(Forbidden())(image[index : index + 1], target) for index in range(2)])
    torch.testing.assert_close(maps.as_tensor(), singles.as_tensor())


def test_random_is_seeded_and_uniform() -> None:
    image = torch.zeros(1, 1, 40, 50)
    torch.manual_seed(3)
    untouched = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (Random(Forbidden(), seed=seed)(image, target).as_tensor() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), untouched)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert abs(float(first.mean()) - 0.5) < 0.02
    torch.manual_seed(3)
    drawn = Random(Forbidden(), seed=None)(image, target).as_tensor()
    assert torch.equal(drawn.flatten()[:2], untouched)


def test_intensity_is_the_distance_from_0() -> None:
    image = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert Intensity(Forbidden())(image, target).flatten().tolist() == [4.0, 2.5]


def test_edges_of_a_slope_are_its_slope() -> None:
    x, y, z = torch.meshgrid(*map(torch.arange, (5, 6, 7)), indexing="ij")
    image = (3.0 * x - 4.0 * y + 12.0 * z)[None, None]
    torch.testing.assert_close(EdgeMagnitude(Forbidden())(image, target).as_tensor(), torch.full((1, 1, 5, 6, 7), 13.0))
    two = torch.cat([image, -image], dim=1)
    torch.testing.assert_close(EdgeMagnitude(Forbidden())(two, target).as_tensor(), torch.full((1, 1, 5, 6, 7), 26.0))


def test_edges_lie_on_both_sides_of_a_step() -> None:
    image = torch.zeros(1, 1, 4, 8)
    image[..., 4:] = 2
    row = EdgeMagnitude(Forbidden())(image, target)[0, 0, 1].tolist()
    assert row == [0, 0, 0, 1, 1, 0, 0, 0]
