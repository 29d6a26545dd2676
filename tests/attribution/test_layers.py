"""Layers are found, measured in windows as in one pass, and their maps lie where they belong on the image's grid."""

import re
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution import METHODS, every_layer, find_layers
from unoise_monai.attribution.base import Score
from unoise_monai.attribution.layer_methods import GradCAM, GradCAMPlusPlus, GuidedGradCAM, LayerGuidedBackprop
from unoise_monai.attribution.layers import Layer, LayerActivation, LayerAttributor, layer_named, on_image, over_windows
from unoise_monai.attribution.targets import Difference, Foreground, Region, SoftDice, Target
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet, UNetMSS
from unoise_monai.networks.weights import attributing


def image(*size: int) -> Tensor:
    return torch.zeros(1, 1, *size)


def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1)


class SharedActivation(nn.Module):
    """Down and up again, one ReLU for all, squeeze and excitation at the full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up, self.head = conv(1, 2), conv(2, 4, 2), conv(4, 3), conv(3, 2)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.unused, self.relu = conv(1, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.down(x * self.squeeze(x)))
        x = self.relu(self.up(nn.functional.interpolate(x, scale_factor=2)))
        return self.head(x)


@pytest.mark.parametrize("dims", [2, 3])
def test_layers_of_the_u_net(dims: int) -> None:
    found = find_layers(UNet(dims, 1, 3, depth=3, channel_factor=2), image(*[8, 12, 4][:dims]))
    assert list(found) == ["encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.1"]
    paths = ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    assert [layer.path for layer in found.values()] == paths
    with_side_heads = find_layers(UNetMSS(2, 1, 1, (2, 4, 8)), image(8, 8))
    assert [layer.path for layer in with_side_heads.values()] == paths
    assert [layer.factor for layer in found.values()] == [(factor,) * dims for factor in (1, 2, 4, 2, 1)]
    assert [layer.channels for layer in found.values()] == [4, 8, 16, 8, 4]


def test_a_single_level_is_the_bottleneck() -> None:
    assert find_layers(UNet(2, 1, 2, depth=1), image(5, 5)) == {"bottleneck": Layer("encoder.0", (1.0, 1.0), 16)}


def test_a_volume_of_any_size_needs_a_small_block_only() -> None:
    volume = torch.zeros(1).expand(2, 1, 5000, 5000, 5000)
    assert find_layers(UNet(3, 1, 2, depth=2, channel_factor=1), volume)["bottleneck"].factor == (2, 2, 2)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2), num_res_units=1),
            "encoder.0=model.0/2/2 bottleneck=model.1.submodule.1.submodule/4/8 decoder.0=model.1.submodule.2/2/2 "
            "decoder.1=model.2.0/1/2",
        ),
        (
            nets.UNet(3, 1, 2, (2, 4, 8), (2, 2)),
            "encoder.0=model.0/2/2 bottleneck=model.1.submodule.1.submodule/4/8 decoder.0=model.1.submodule.2/2/2",
        ),
        (
            nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 2), blocks_up=(1, 1)),
            "encoder.0=down_layers.0/1/8 encoder.1=down_layers.1/2/16 bottleneck=down_layers.2/4/32 "
            "decoder.0=up_layers.0/2/16 decoder.1=up_layers.1/1/8",
        ),
        (
            nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 8]),
            "encoder.0=input_block/1/2 encoder.1=downsamples.0/2/4 bottleneck=bottleneck/4/8 "
            "decoder.0=upsamples.0/2/4 decoder.1=upsamples.1/1/2",
        ),
        (
            nets.VNet(3, 1, 2),
            "encoder.0=in_tr/1/16 encoder.1=down_tr32/2/32 encoder.2=down_tr64/4/64 encoder.3=down_tr128/8/128 "
            "bottleneck=down_tr256/16/256 decoder.0=up_tr256/8/256 decoder.1=up_tr128/4/128 decoder.2=up_tr64/2/64 "
            "decoder.3=up_tr32/1/32",
        ),
    ],
    ids=["UNet with residual units", "UNet", "SegResNet", "DynUNet", "VNet"],
)
def test_layers_of_monai_s_networks(network: nn.Module, expected: str) -> None:
    """Each as name=path/factor/channels, in order."""
    found = find_layers(network, image(32, 32, 32))
    described = (f"{name}={path}/{factor[0]:g}/{channels}" for name, (path, factor, channels) in found.items())
    assert " ".join(described) == expected


def test_each_axis_has_its_factor() -> None:
    network = nets.DynUNet(3, 1, 2, [3, 3, 3], [1, (2, 2, 1), 2], [(2, 2, 1), 2], filters=[2, 4, 8])
    factors = {name: layer.factor for name, layer in find_layers(network, image(16, 8, 8)).items()}
    assert factors["encoder.1"] == (2, 2, 1)
    assert factors["bottleneck"] == (4, 4, 2)


def test_neither_a_shared_activation_nor_squeeze_and_excitation_is_a_layer() -> None:
    found = find_layers(SharedActivation(), image(8, 8))
    assert list(found) == ["encoder.0", "bottleneck", "decoder.0"]
    assert [layer.path for layer in found.values()] == ["first", "down", "up"]


def test_a_layer_by_path_and_by_name() -> None:
    network = UNet(2, 1, 3, depth=3, channel_factor=2)
    assert layer_named(network, "bottleneck", image(8, 8)) == Layer("encoder.2", (4.0, 4.0), 16)
    assert layer_named(network, "encoder.1.0", image(8, 8)) == Layer("encoder.1.0", (2.0, 2.0), 8)
    assert layer_named(network, "head", image(8, 8)) == Layer("head", (1.0, 1.0), 3)


def test_a_path_goes_before_a_name() -> None:
    class Own(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.bottleneck = conv(1, 2)
            self.down, self.up, self.head = conv(2, 5, 2), nn.Upsample(scale_factor=2), conv(5, 1)

    assert find_layers(Own(), image(8, 8))["bottleneck"].path == "down"
    assert layer_named(Own(), "bottleneck", image(8, 8)).path == "bottleneck"


@pytest.mark.parametrize("name", ["encoder.7", "encoder", "side_heads.0", ""])
def test_no_such_layer(name: str) -> None:
    rule = (
        "layer must be one of encoder.0, encoder.1, bottleneck, decoder.0, decoder.1, or the path of a module that runs"
        f" once in a pass and gives a tensor (B, C, *spatial), got '{name}'"
    )
    with pytest.raises(ValueError, match=re.escape(rule)):
        layer_named(UNetMSS(2, 1, 1, (2, 4, 8)), name, image(8, 8))


@pytest.mark.parametrize("name", ["relu", "squeeze", "unused"])
def test_a_layer_runs_once_and_gives_a_map(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape("one of encoder.0, bottleneck, decoder.0, or")):
        layer_named(SharedActivation(), name, image(8, 8))


def test_a_scripted_network_shows_no_layers() -> None:
    with pytest.raises(ValueError, match="network must be a plain module for its layers to be found, got a scripted"):
        find_layers(torch.jit.script(UNet(2, 1, 2, depth=2, channel_factor=1)), image(8, 8))


def test_logits_are_no_layer() -> None:
    with pytest.raises(ValueError, match=r"network must consist of layers before its last, .* found no other"):
        find_layers(conv(1, 2), image(8, 8))


def test_the_network_stays_as_it_was() -> None:
    network = UNet(2, 1, 2, depth=2, channel_factor=1).train()
    network.encoder[0].eval()
    before = [module.training for module in network.modules()]
    find_layers(network, image(8, 8))
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert int(network.encoder[0][1].num_batches_tracked) == 0


SIZES = {2: (151, 11), 3: (93, 5, 7)}


def mask_of(dims: int, label: int = 1) -> Tensor:
    return torch.rand(1, 1, *SIZES[dims], generator=torch.Generator().manual_seed(label)) < 0.3


def half_of_what_it_takes(network: nn.Module, image: Tensor, copies: int = 1) -> float:
    """A budget, in 1e9 bytes, that needs windows."""
    volume = VolumeNetwork(network)
    with torch.enable_grad():
        return 0.65e-9 * volume._cost(image).bytes_per_voxel * volume.pad(image).numel() * copies


def score_of(network: nn.Module, target: Target, memory_gb: float | None = None) -> Score:
    return Score(VolumeNetwork(network, memory_gb, clips=True), target)


def features_and_gradient(layer: nn.Module, score: Score, window: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    value = score(window)
    handle.remove()
    return kept[0].detach(), *torch.autograd.grad(value.sum(), [kept[0], window])


TARGETS = {
    "region": lambda dims: Region(mask_of(dims), 1),
    "foreground": lambda dims: Foreground(mask_of(dims).long() + mask_of(dims, 2)),
    "difference": lambda dims: Difference(Region(mask_of(dims), 1), Region(mask_of(dims), 2)),
    "dice": lambda dims: SoftDice(mask_of(dims).long(), 1),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("path", ["encoder.0", "encoder.1", "decoder.0.up", "head"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_windows_equal_the_whole(dims: int, path: str, target: str) -> None:
    network, image, windows = unet(dims), picture(*SIZES[dims]), []

    def measure(score: Score, window: Tensor) -> tuple[Tensor, ...]:
        windows.append(window.shape[2])
        return features_and_gradient(network.get_submodule(path), score, window)

    with attributing(network):
        whole = over_windows(measure, score_of(network, TARGETS[target](dims)), image)
        assert windows == [image.shape[2] + 1]
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, TARGETS[target](dims), budget), image)
    assert len(windows) > 2
    assert max(windows[1:]) < image.shape[2]
    side = image.shape[2] + 1
    layer_side = side // 2 if path == "encoder.1" else side
    assert [part.shape[2] for part in parts] == [layer_side, layer_side, side]
    for one, other in zip(whole, parts, strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_windows_of_a_deeper_network_reach_further() -> None:
    torch.manual_seed(0)
    network, image = UNet(2, 1, 2, 3, channel_factor=1).eval(), torch.randn(1, 1, 297, 4)
    mask = torch.rand(1, 1, 297, 4) < 0.3
    measure = partial(features_and_gradient, network.encoder[2])
    with attributing(network):
        whole = over_windows(measure, score_of(network, Region(mask, 1)), image)
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, Region(mask, 1), budget), image)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_other_volumes_go_along() -> None:
    network, image = unet(2), picture(*SIZES[2])
    start = torch.arange(151.0).reshape(1, 1, 151, 1).expand_as(image)

    def measure(score: Score, window: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        assert score.copies == 1
        assert window.is_leaf
        assert window.requires_grad
        return window, other

    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        parts = over_windows(measure, score_of(network, Region(mask_of(2), 1), budget), image, (start,))
    assert torch.equal(parts[0][..., :151, :11], image)
    assert torch.equal(parts[1][..., :151, :11], start)
    assert not parts[0].requires_grad


def test_more_copies_take_smaller_windows() -> None:
    network, image = unet(2), picture(*SIZES[2])
    seen: list[tuple[int, int]] = []

    def measure(score: Score, window: Tensor) -> tuple[Tensor]:
        seen.append((score.copies, window.shape[2]))
        return (window,)

    budget = half_of_what_it_takes(network, image, 2)
    with attributing(network):
        for copies in (1, 2):
            over_windows(measure, score_of(network, Region(mask_of(2), 1), budget), image, copies=copies)
        assert seen[0] == (1, 152)
        assert {copies for copies, _ in seen[1:]} == {2}
        assert len(seen) > 2
        # At once, as many go through as there is memory for.
        for copies in (2, 5):
            score = Score(VolumeNetwork(network, clips=True), Region(mask_of(2), 1), copies=3)
            over_windows(measure, score, image, copies=copies)
        assert seen[-2:] == [(3, 152), (5, 152)]


@pytest.mark.parametrize(
    "target",
    [
        SoftDice(mask_of(2).long(), 1),
        lambda logits: logits.clamp_min(0).flatten(1).sum(dim=1),
        lambda logits: (logits**2).flatten(1).sum(dim=1),
        lambda logits: (logits**3).flatten(1).sum(dim=1),
    ],
    ids=["dice", "rectified", "squared", "cubed"],
)
def test_what_needs_a_linear_target_over_windows(target: Target) -> None:
    network, image = unet(2), picture(*SIZES[2])
    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        measure = partial(features_and_gradient, network.encoder[1])
        over_windows(measure, score_of(network, target), image, linear=True)
        with pytest.raises(ValueError, match=r"target must be linear in the logits, .* got "):
            over_windows(measure, score_of(network, target, budget), image, linear=True)
        for linear in (Region(mask_of(2), 1), Difference(Region(mask_of(2), 1), Foreground(mask_of(2).long()))):
            over_windows(measure, score_of(network, linear, budget), image, linear=True)


@pytest.mark.parametrize(("side", "message"), [(5, "got 5 for"), (2, r"got factors \(\d+, 6\)")])
def test_a_grid_that_does_not_fit_the_windows(side: int, message: str) -> None:
    network, image = unet(2), picture(*SIZES[2])

    def measure(score: Score, window: Tensor) -> tuple[Tensor]:
        return (window[:, :, :side, :side],)

    with attributing(network):
        budget = half_of_what_it_takes(network, image)
        with pytest.raises(ValueError, match=f"layer must lie on a grid that divides the network's stride, {message}"):
            over_windows(measure, score_of(network, Region(mask_of(2), 1), budget), image)


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
