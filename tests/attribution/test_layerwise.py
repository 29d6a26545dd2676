"""Maps of a layer lie on the image's grid, where they belong, for one layer and for all."""

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.base import METHODS, Score
from unoise_monai.attribution.layer_methods import GradCAM, GradCAMPlusPlus, GuidedGradCAM, LayerGuidedBackprop
from unoise_monai.attribution.layers import LayerActivation, LayerAttributor, every_layer, on_image


class OnePlace(LayerAttributor):
    """A single voxel of the layer."""

    name = "one_place"
    default_sign = "signed"
    at: tuple[int, ...] = ()

    def on_layer(self, image: Tensor, score: Score, layer: nn.Module) -> Tensor:
        values = torch.zeros(1, 1, *[side // 4 for side in score.volume.pad(image).shape[2:]])
        values[(0, 0, *self.at)] = 1
        return values


class Residual(nn.Module):
    """Adds its skip connection to a layer's output, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 3), (3, 3), (3, 2)))
        self.act, self.in_place = nn.ReLU(), in_place

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = self.second(skip)
        if self.in_place:
            x += skip
        else:
            x = x + skip
        return self.last(self.act(x))


class TwoSigns(LayerAttributor):
    """Plus one beside minus one, in two channels that cancel where both are there."""

    name = "two_signs"

    def on_layer(self, image: Tensor, score: Score, layer: nn.Module) -> Tensor:
        return torch.tensor([[[[1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [-1.0, 1.0]]]])


@pytest.mark.parametrize(("size", "place"), [((21, 13), (3, 1)), ((13, 18, 17), (1, 3, 3))])
def test_a_blob_of_a_coarse_layer_lands_on_its_voxels(size: tuple[int, ...], place: tuple[int, ...]) -> None:
    attributor = OnePlace(unet(len(size), depth=3))
    attributor.at = place
    found = attributor(picture(*size), region(*size)).as_tensor()
    assert found.shape == (1, 1, *size)
    # The highest values are those of the two middle voxels of the four that it stands for, at 7/8 along each axis.
    expected = torch.zeros(size)
    expected[tuple(slice(4 * at + 1, 4 * at + 3) for at in place)] = 0.875 ** len(size)
    assert torch.equal(found[0, 0] == found.max(), expected > 0)
    assert float(found.max()) == pytest.approx(float(expected.max()))
    centre = [float((found[0, 0].movedim(axis, -1) * torch.arange(size[axis])).sum()) for axis in range(len(size))]
    # Where a blob reaches the padding, a part of it is cut off: the last axis of the second.
    for axis, at in enumerate(place):
        if 4 * at + 6 <= size[axis]:
            assert centre[axis] / float(found.sum()) == pytest.approx(4 * at + 1.5)


def test_interpolation_is_linear_between_centres() -> None:
    values = torch.tensor([[[[0.0, 4.0]]]])
    expected = torch.tensor([[[[0.0, 1.0, 3.0]] * 2]])
    torch.testing.assert_close(on_image(values, torch.Size([2, 4]), torch.zeros(1, 1, 2, 3)), expected)


def test_the_sign_is_taken_of_each_channel_on_the_layer_s_grid() -> None:
    image = picture(8, 8)
    expected = {
        "signed": torch.tensor([[1.0, -1.0], [0.0, 2.0]]),
        "absolute": torch.tensor([[1.0, 1.0], [2.0, 2.0]]),
        "positive": torch.tensor([[1.0, 0.0], [1.0, 2.0]]),
    }
    for sign, values in expected.items():
        finer = F.interpolate(values[None, None], (8, 8), mode="bilinear")
        torch.testing.assert_close(TwoSigns(unet(2, depth=3), sign=sign)(image, region(8, 8)).as_tensor(), finer)


@pytest.mark.parametrize("size", [(10, 7), (6, 9, 5)])
@pytest.mark.parametrize("path", ["encoder.1.0", "bottleneck"])
def test_activation_is_the_mean_magnitude_of_the_features(size: tuple[int, ...], path: str) -> None:
    network, image = unet(len(size), depth=3).eval(), picture(*size)
    padded = F.pad(image, [n for side in reversed(size) for n in (0, -side % 4)], mode="replicate")
    with torch.no_grad():
        fine = network.encoder[0](padded)
        layers = {"encoder.1.0": network.encoder[1][0](network.pools[1](fine))}
        layers["bottleneck"] = network.encoder[2](network.pools[2](network.encoder[1](network.pools[1](fine))))
    mean = layers[path].abs().mean(dim=1, keepdim=True)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    expected = F.interpolate(mean, padded.shape[2:], mode=mode)[(..., *map(slice, size))]
    found = LayerActivation(network, path)(image, region(*size))
    torch.testing.assert_close(found.as_tensor(), expected)
    assert found.meta["attribution"][0] == {
        "method": "layer_activation",
        "sign": "absolute",
        "layer": path.replace("bottleneck", "encoder.2"),
    }


def test_every_layer_from_first_to_last_with_the_image_s_geometry() -> None:
    network = unet(3, depth=3)
    image = MetaTensor(picture(9, 6, 5, batch=2), affine=AFFINE)
    maps = every_layer(GradCAM, network, image, region(9, 6, 5), sign="absolute")
    assert list(maps) == ["encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1"]
    for name, found in maps.items():
        assert found.shape == (2, 1, 9, 6, 5)
        torch.testing.assert_close(found.affine, AFFINE.double())
        expected = GradCAM(network, name, sign="absolute")(image, region(9, 6, 5))
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        assert float(found.max()) > 0
    assert maps["bottleneck"].meta["attribution"][1]["layer"] == "encoder.2"


@pytest.mark.parametrize("method", [GradCAM, GuidedGradCAM, LayerGuidedBackprop, LayerActivation])
def test_every_layer_of_a_foreign_network(method: type) -> None:
    torch.manual_seed(0)
    network = nets.UNet(2, 1, 2, (2, 4, 8), (2, 2), num_res_units=1, act=("relu", {"inplace": True}))
    maps = every_layer(method, network, picture(16, 12), region(16, 12), sign="absolute")
    assert list(maps) == ["encoder.0", "bottleneck", "decoder.0", "decoder.1"]
    assert all(found.shape == (1, 1, 16, 12) for found in maps.values())
    assert any(float(found.max()) > 0 for found in maps.values())


def test_a_module_with_the_name_of_another_stage() -> None:
    class Misnamed(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.bottleneck, self.down = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, 2, padding=1)
            self.up, self.head = nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 1)

    maps = every_layer(LayerActivation, Misnamed(), picture(8, 8), region(8, 8))
    found = {name: values.meta["attribution"][0]["layer"] for name, values in maps.items()}
    assert found == {"encoder.0": "bottleneck", "bottleneck": "down", "decoder.0": "up"}


LAYERED = [method for method in METHODS.values() if issubclass(method, LayerAttributor)]


@pytest.mark.parametrize("method", [method for method in LAYERED if method is not GradCAMPlusPlus])
def test_what_is_added_to_a_layer_in_place_is_not_the_layer_s(method: type[LayerAttributor]) -> None:
    image, target = picture(6, 5), region(6, 5)
    found, expected = (method(Residual(kind), "second", sign="signed")(image, target) for kind in (True, False))
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    for key, value in expected.meta["attribution"][0].items():
        assert found.meta["attribution"][0][key] == (pytest.approx(value) if isinstance(value, float) else value)
