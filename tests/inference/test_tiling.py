"""Tiles equal the whole volume, and the rule says when they do."""

import logging
import math
from typing import Any

import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.inference import tiling
from unoise_monai.inference.memory import measure_pass
from unoise_monai.inference.tiling import TiledInferer, tiles_of, tiling_rule
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter

AFFINE = torch.tensor([[0.0, -1.9, 0.3, 11], [1.1, 0.2, 0.0, -7], [0.1, 0.0, 3.0, 5], [0, 0, 0, 1]])


def unet(dims: int = 3, depth: int = 2, seed: int = 0) -> UNet:
    """A U-Net in evaluation mode whose batch-norm statistics are 20% off those of noise: outputs of order 1."""
    torch.manual_seed(seed)
    network = UNet(spatial_dims=dims, in_channels=1, out_channels=2, depth=depth, channel_factor=2)
    norms = [module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d))]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(2, 1, *[4 * network.stride] * dims))
        for norm in norms:
            norm.momentum = 0.1
            norm.running_var *= 1 + 0.2 * torch.randn_like(norm.running_var).clamp(-2, 2)
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            nn.init.normal_(norm.bias, 0, 0.3)
    return network.eval()


class Counted(nn.Module):
    """Counts the passes and their sizes."""

    def __init__(self, network: nn.Module, **declared: Any) -> None:
        super().__init__()
        self.network = network
        self.stride = declared.get("stride", getattr(network, "stride", None))
        self.halo = declared.get("halo", getattr(network, "halo", None))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return self.network(x)


def whole(network: nn.Module, x: Tensor) -> Tensor:
    """The definition: pad the end of each side to the stride by its last voxels, run, crop."""
    ends = [-side % network.stride for side in x.shape[2:]]
    padded = F.pad(x, [n for end in reversed(ends) for n in (0, end)], "replicate")
    return network(padded)[(..., *[slice(side) for side in x.shape[2:]])]


def budget_gb(network: nn.Module, x: Tensor, share: float) -> float:
    """The memory for tiles of this share of the volume's voxels."""
    dims = x.ndim - 2
    block = (1, x.shape[1], *[network.stride * -(-16 // network.stride)] * dims)
    with torch.no_grad():
        cost = measure_pass(network, network, block, torch.device("cpu"), torch.float32)
    voxels = math.prod(side + -side % network.stride for side in x.shape[2:])
    fixed = 4 * (x.shape[1] + cost.out_channels) * voxels
    return x.shape[0] * (fixed + share * voxels * cost.bytes_per_voxel) / 1e9


@pytest.mark.parametrize(
    ("depth", "size", "share", "least_tiles"),
    [
        (1, (21, 13, 17), 0.3, 6),
        (2, (45, 51, 37), 0.5, 6),
        (3, (75, 90, 37), 0.7, 4),
        (4, (171, 50, 21), 0.8, 2),
        (1, (61, 47), 0.2, 4),
        (2, (75, 101), 0.3, 6),
        (3, (151, 133), 0.4, 6),
        (4, (257, 301), 0.5, 4),
    ],
)
def test_tiles_equal_the_whole_volume(depth: int, size: tuple[int, ...], share: float, least_tiles: int) -> None:
    network = Counted(unet(len(size), depth))
    x = torch.randn(1, 1, *size)
    inferer = TiledInferer(memory_gb=budget_gb(network, x, share), precision="fp32")
    network.sizes.clear()
    with torch.no_grad():
        output = inferer(x, network)
        assert len(network.sizes) >= least_tiles
        expected = whole(network, x)
    assert output.shape == (1, 2, *size)
    assert 0.3 < float(expected.std()) < 3
    assert float((output - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("depth", "size", "tile"),
    [
        (1, (20, 14, 17), (8, 8, 17)),
        (2, (46, 28, 24), (26, 24, 24)),
        (3, (152, 132), (64, 68)),
        (4, (240, 16), (136, 16)),
    ],
)
def test_tiles_equal_the_whole_volume_in_double_precision(
    depth: int, size: tuple[int, ...], tile: tuple[int, ...]
) -> None:
    network = unet(len(size), depth).double()
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    output = torch.full((1, 2, *size), torch.nan, dtype=torch.float64)
    with torch.no_grad():
        for window, core, inner in tiles_of(size, tile, network.stride, network.halo):
            output[(..., *core)] = network(x[(..., *window)])[(..., *inner)]
        torch.testing.assert_close(output, network(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("depth", "size"), [(2, (75, 101)), (2, (45, 51, 37)), (3, (151, 133))])
def test_half_the_halo_is_not_enough(depth: int, size: tuple[int, ...]) -> None:
    network = unet(len(size), depth)
    short = Counted(network, halo=network.halo // 2)
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        output = TiledInferer(memory_gb=budget_gb(short, x, 0.3), precision="fp32")(x, short)
        difference = (output - whole(network, x)).abs().max()
    assert len(set(short.sizes)) > 1
    assert float(difference) > 1e-5


@pytest.mark.parametrize(("side", "tile", "margin"), [(64, 24, 4), (64, 40, 16), (20, 20, 8), (36, 12, 4), (32, 8, 0)])
def test_cores_cover_the_volume_once_with_true_context(side: int, tile: int, margin: int) -> None:
    covered = torch.zeros(side, 8)
    for window, core, inner in tiles_of((side, 8), (tile, 8), 4, margin):
        covered[core] += 1
        assert window[0].stop - window[0].start == tile
        assert 0 <= window[0].start <= core[0].start < core[0].stop <= window[0].stop <= side
        assert core[0].start - window[0].start >= margin or window[0].start == 0
        assert window[0].stop - core[0].stop >= margin or window[0].stop == side
        assert window[0].start % 4 == 0
        places = torch.arange(side)
        assert torch.equal(places[window[0]][inner[0]], places[core[0]])
    assert torch.equal(covered, torch.ones_like(covered))


def test_one_pass_where_the_memory_allows() -> None:
    network = Counted(unet(depth=3))
    x = torch.randn(2, 1, 13, 18, 11)
    with torch.no_grad():
        output = TiledInferer(precision="fp32")(x, network)
        assert network.sizes == [(16, 16, 16), (16, 20, 12)]
        torch.testing.assert_close(output, whole(network, x), atol=1e-5, rtol=0)


def test_a_batch_is_tiled_as_its_items_are() -> None:
    network = unet()
    x = torch.randn(3, 1, 44, 30, 29)
    inferer = TiledInferer(memory_gb=budget_gb(network, x, 0.6), precision="fp32")
    with torch.no_grad():
        items = torch.cat([whole(network, item[None]) for item in x])
        torch.testing.assert_close(inferer(x, network), items, atol=1e-5, rtol=0)


def test_too_little_memory_is_refused_with_what_would_do() -> None:
    network, x = unet(2), torch.randn(1, 1, 45, 51)
    with pytest.raises(MemoryError, match=r"memory_gb must be at least \d\.\d+ for the smallest tile") as caught:
        TiledInferer(memory_gb=1e-5, precision="fp32")(x, network)
    enough = float(str(caught.value).split("at least ")[1].split()[0])
    with torch.no_grad():
        output = TiledInferer(memory_gb=enough, precision="fp32")(x, network)
        torch.testing.assert_close(output, whole(network, x), atol=1e-5, rtol=0)


def test_bf16_is_near_fp32_and_comes_back_as_float32() -> None:
    network, x = unet(), torch.randn(1, 1, 30, 33, 29)
    with torch.no_grad():
        output = TiledInferer(precision="bf16")(x, network)
        expected = whole(network, x)
    assert output.dtype is torch.float32
    assert output.is_contiguous()
    assert 0 < float((output - expected).abs().mean()) <= 0.05 * float(expected.std())
    assert float((output.softmax(1) - expected.softmax(1)).abs().max()) <= 0.05


@pytest.mark.parametrize("share", [2.0, 0.5])
def test_metatensor_keeps_its_geometry_and_decollates(share: float) -> None:
    network, x = unet(), torch.randn(1, 1, 45, 20, 37)
    image = MetaTensor(x, affine=AFFINE[None], meta={"filename_or_obj": ["case.nii.gz"]})
    image.is_batch = True
    before = image.clone()
    with torch.no_grad():
        output = TiledInferer(memory_gb=budget_gb(network, x, share), precision="fp32")(image, network)
    assert isinstance(output, MetaTensor)
    assert output.shape == (1, 2, 45, 20, 37)
    torch.testing.assert_close(output.affine, AFFINE[None].double())
    assert output.meta["filename_or_obj"] == ["case.nii.gz"]
    assert torch.equal(image, before)
    (item,) = decollate_batch(output)
    assert item.shape == (2, 45, 20, 37)
    torch.testing.assert_close(item.affine, AFFINE.double())


def test_gradients_flow_through_tiles() -> None:
    network, x = unet(2), torch.randn(1, 1, 75, 61, requires_grad=True)
    inferer = TiledInferer(memory_gb=2 * budget_gb(network, x, 0.4), precision="fp32")
    (expected,) = torch.autograd.grad(whole(network, x).square().sum(), x)
    (gradient,) = torch.autograd.grad(inferer(x, network).square().sum(), x)
    torch.testing.assert_close(gradient, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_network_comes_back_untouched() -> None:
    network = unet().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    modes = [module.training for module in network.modules()]
    before = {key: (value.clone(), value.stride()) for key, value in network.state_dict().items()}
    x = torch.randn(1, 1, 18, 20, 22)
    for precision in ("fp32", "bf16"):
        TiledInferer(precision=precision)(x, network)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value.stride() == before[key][1]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def with_layer(layer: nn.Module) -> nn.Module:
    network = unet()
    network.extra = nn.ModuleDict({"layer": layer})
    return network


@pytest.mark.parametrize(
    ("layer", "exact"),
    [
        (nn.InstanceNorm3d(4), False),
        (nn.InstanceNorm3d(4, track_running_stats=True).eval(), True),
        (nn.GroupNorm(2, 4), False),
        (nn.LayerNorm(4), False),
        (nn.BatchNorm3d(4, track_running_stats=False).eval(), False),
        (nn.BatchNorm3d(4).train(), False),
        (nn.BatchNorm3d(4).eval(), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.AdaptiveAvgPool3d(1), False),
        (nn.AdaptiveMaxPool3d(1), False),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="reflect"), True),
        (nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True), False),
        (nn.Upsample(scale_factor=2, mode="trilinear"), True),
        (nn.LocalResponseNorm(2), True),
    ],
)
def test_rule_names_the_layer_that_sees_everything(layer: nn.Module, exact: bool) -> None:
    rule = tiling_rule(with_layer(layer))
    assert rule.exact is exact
    if not exact:
        name = type(layer).__name__
        assert rule.reason.startswith(f"blended: {name} at 'extra.layer")
        assert rule.reason.endswith("sees the whole tile")


def test_rule_takes_what_networks_tell() -> None:
    assert tiling_rule(unet(depth=3))[:3] == (True, 4, 26)
    segmenter = ExplainedSegmenter(unet(depth=3), unet(depth=2)).eval()
    assert tiling_rule(segmenter)[:3] == (True, 4, 26)
    assert tiling_rule(nn.DataParallel(unet()))[:3] == (True, 2, 10)
    assert tiling_rule(torch.jit.script(unet()))[:3] == (True, 2, 10)
    scripted = torch.jit.script(with_layer(nn.InstanceNorm3d(4)))
    assert tiling_rule(scripted).reason == "blended: InstanceNorm3d at 'extra.layer' sees the whole tile"
    silent = ExplainedSegmenter(unet(), nn.Conv3d(1, 1, 1)).eval()
    assert (
        tiling_rule(silent).reason == "blended: ExplainedSegmenter does not tell its stride and halo as whole numbers"
    )
    assert not tiling_rule(nn.Conv3d(1, 1, 1)).exact
    assert not tiling_rule(lambda x: x).exact


class Normed(nn.Module):
    """A network that sees its whole tile, and returns the very tensor that it keeps."""

    def __init__(self, dims: int = 3, stride: int | None = 4) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(1) if dims == 3 else nn.InstanceNorm2d(1)
        self.stride, self.halo = stride, 8
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.norm(x))
        return self.kept[-1]


@pytest.mark.parametrize("size", [(25, 22), (25, 22, 19)])
def test_other_networks_are_blended_by_monai(size: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    network, x = Normed(len(size)), torch.randn(1, 1, *size)
    image = MetaTensor(x, affine=AFFINE[None])
    inferer = TiledInferer(precision="fp32", roi_size=15, overlap=0.25)
    with caplog.at_level(logging.INFO, logger=tiling.__name__):
        output = inferer(image, network)
        inferer(image, network)
    name = type(network.norm).__name__
    assert caplog.messages == [f"Normed: blended: {name} at 'norm' sees the whole tile"]
    plain = SlidingWindowInferer([16] * len(size), 1, 0.25, "gaussian", padding_mode="replicate")
    expected = plain(x, lambda window: network.norm(window).clone())
    torch.testing.assert_close(output.as_tensor(), expected)
    torch.testing.assert_close(output.affine, AFFINE[None].double())
    # What the network gave has zero mean still: the sliding window weighed a copy of it.
    assert all(abs(float(kept.mean())) < 1e-5 for kept in network.kept)


@pytest.mark.parametrize(("stride", "expected"), [(4, (12, 16)), (None, (16, 16))])
def test_blending_windows_are_cut_to_the_volume_where_the_stride_is_known(
    stride: int | None, expected: tuple[int, int]
) -> None:
    network = Normed(2, stride)
    TiledInferer(precision="fp32", roi_size=(16, 16))(torch.randn(1, 1, 10, 20), network)
    assert {tuple(kept.shape[2:]) for kept in network.kept} == {expected}


def test_the_exact_rule_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    inferer, network = TiledInferer(), unet(2)
    with caplog.at_level(logging.INFO, logger=tiling.__name__):
        for _ in range(2):
            inferer(torch.randn(1, 1, 12, 12), network)
    assert caplog.messages == ["UNet: exact: stride 2, halo 10, and no layer sees further"]


def test_works_as_the_inferer_of_monais_evaluator() -> None:
    network = unet()
    batch = {"image": torch.randn(1, 1, 13, 14, 15), "label": torch.zeros(1, 1, 13, 14, 15)}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=network,
        inferer=TiledInferer(precision="fp32"),
        decollate=False,
    )
    evaluator.run()
    torch.testing.assert_close(evaluator.state.output["pred"], whole(network, batch["image"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", [unet(2), Normed(2)])
def test_output_that_is_not_one_tensor_is_refused(network: nn.Module) -> None:
    network.register_forward_hook(lambda module, inputs, output: (output, output))
    with pytest.raises(ValueError, match=r"network must give one tensor on its input's grid .*, got tuple"):
        TiledInferer(precision="fp32")(torch.randn(1, 1, 16, 16), network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_gb": 0.0}, "memory_gb must be above 0, got 0.0"),
        ({"memory_gb": float("nan")}, "memory_gb must be above 0, got nan"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"overlap": 1.0}, "overlap must be at least 0 and below 1, got 1.0"),
        ({"sw_batch_size": 0}, "sw_batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledInferer(**arguments)


@pytest.mark.parametrize("stride", [True, 0, 2.0, "2", None])
def test_a_stride_that_is_no_whole_number_counts_as_none(stride: object) -> None:
    network = nn.Identity()
    network.stride, network.halo = stride, 0  # type: ignore[assignment]
    assert tiling.tiling_rule(network).stride is None
