"""A pass's memory is measured right, the network stays as it was, and the tiles are the fewest that fit."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.inference import memory
from unoise_monai.inference.memory import PassCost, default_budget, fewest_tiles, fitting_tile, measure_pass

CPU = torch.device("cpu")


class Chain(nn.Module):
    """Holds a 4-channel and an 8-channel map at once, by bare functions too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        wide = self.first(x)
        return torch.cat([wide, wide], dim=1)[:, :2].clone()


def measured(network: nn.Module, side: int = 16, dtype: torch.dtype = torch.float32) -> PassCost:
    return measure_pass(network, network, (1, 1, side, side), CPU, dtype)


@pytest.mark.parametrize("side", [16, 32])
def test_bytes_per_voxel_is_the_peak_of_what_lives(side: int) -> None:
    # `wide` lives to the end of `forward`, so the input, 4 channels, 8 and the last 2 are there at once.
    cost = measured(Chain(), side)
    assert cost.bytes_per_voxel == memory.WORKSPACE * 4 * (1 + 4 + 8 + 2)
    assert cost.out_channels == 2
    assert cost.fixed_bytes == 0


def test_what_is_freed_does_not_count() -> None:
    # A thousand additions keep two maps alive: what goes in and what comes out.
    class Additions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1000):
                x = x + 1
            return x

    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.flatten().view_as(x), inplace=True)

    assert measured(Additions()).bytes_per_voxel == memory.WORKSPACE * 4 * 3  # the zeros are the caller's
    assert measured(Views()).bytes_per_voxel == memory.WORKSPACE * 4


def test_casts_of_the_weights_are_fixed_bytes() -> None:
    network = nn.Conv2d(1, 2, 3, padding=1)

    def predict(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x)

    cost = measure_pass(network, predict, (1, 1, 16, 16), CPU, torch.bfloat16)
    assert cost.fixed_bytes == 2 * (2 * 9 + 2)
    assert cost.bytes_per_voxel == memory.WORKSPACE * (4 + 2 + 2 * 2)


def test_measured_once_without_touching_the_network() -> None:
    network = Chain().train()
    seen: list[int] = []
    handle = network.first.register_forward_hook(lambda *_: seen.append(1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert measured(network) is measured(network)
    assert network.calls == 1
    measured(network, dtype=torch.bfloat16)
    assert network.calls == 2
    assert network.training
    assert list(network.first._forward_hooks) == [handle.id]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_works_inside_inference_mode_and_for_scripted_networks() -> None:
    network = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval())
    with torch.inference_mode():
        cost = measured(network)
    assert cost.bytes_per_voxel >= memory.WORKSPACE * 4 * (1 + 4 + 4)


def brute_force(units: tuple[int, ...], margin: int, limit: int) -> int | None:
    """The fewest tiles over every equal extent of every side, counted by walking the side."""

    def count(side: int, extent: int) -> int | None:
        if extent >= side:
            return 1
        right, tiles = extent - margin, 1
        while right < side - extent + margin:
            if extent <= 2 * margin:
                return None
            right, tiles = right + extent - 2 * margin, tiles + 1
        return tiles + 1

    found = []
    for tile in itertools.product(*[range(1, side + 1) for side in units]):
        counts = [count(side, extent) for side, extent in zip(units, tile, strict=True)]
        if math.prod(tile) <= limit and all(counts):
            found.append(math.prod(value for value in counts if value))
    return min(found, default=None)


@pytest.mark.parametrize("units", [(9, 7), (5, 12), (6, 5, 8)])
@pytest.mark.parametrize("margin", [0, 1, 2])
def test_tiles_are_the_fewest(units: tuple[int, ...], margin: int) -> None:
    stride, dims = 4, len(units)
    size = [side * stride for side in units]
    # A halo between two multiples of the stride is rounded up.
    halo = max(0, margin * stride - 1)
    for limit in (*range(1, 30, 3), 60, 100, math.prod(units)):
        expected = brute_force(units, margin, limit)
        tile = fewest_tiles(size, stride, halo, limit * stride**dims)
        assert all(extent % stride == 0 for extent in tile)
        if expected is None:
            assert math.prod(tile) > limit * stride**dims
            continue
        assert math.prod(tile) <= limit * stride**dims
        counts = [
            1 if extent == side else -(-(side - 2 * margin * stride) // (extent - 2 * margin * stride))
            for side, extent in zip(size, tile, strict=True)
        ]
        assert math.prod(counts) == expected


def test_whole_volume_where_it_fits_and_large_volumes_fast() -> None:
    assert fewest_tiles((64, 64, 64), 8, 54, 64**3) == (64, 64, 64)
    tile = fewest_tiles((1024, 1024, 1024), 2, 10, 128**3)
    assert math.prod(tile) <= 128**3


def test_fitting_tile_keeps_the_budget_and_names_what_would_do() -> None:
    cost = PassCost(bytes_per_voxel=1e6, fixed_bytes=10**9, out_channels=2)
    shape = (1, 1, 32, 32, 32)
    fixed = 10**9 + 4 * 3 * 32**3
    assert fitting_tile(cost, shape, 4, 4, fixed + 1e6 * 32**3) == (32, 32, 32)
    assert math.prod(fitting_tile(cost, shape, 4, 4, fixed + 0.5e6 * 32**3)) <= 0.5 * 32**3
    # 1 GB, 12^3 voxels of 1 MB each, and 0.4 MB for the image and the output.
    message = r"memory_gb must be at least 2\.729 for the smallest tile \(12, 12, 12\) of a volume of .*, got 2\.728"
    with pytest.raises(MemoryError, match=message):
        fitting_tile(cost, shape, 4, 4, 2.728e9)
    assert fitting_tile(cost, shape, 4, 4, 2.729e9) == (12, 12, 12)


def test_a_batch_shares_the_budget() -> None:
    cost = PassCost(bytes_per_voxel=100.0, fixed_bytes=0, out_channels=1)
    budget = 108 * 16**3
    assert fitting_tile(cost, (1, 1, 16, 16, 16), 4, 0, budget) == (16, 16, 16)
    assert math.prod(fitting_tile(cost, (2, 1, 16, 16, 16), 4, 0, budget)) < 16**3


def test_default_budget_on_cuda_counts_the_cache_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert default_budget(torch.device("cuda")) == 1200


def test_container_limit_lowers_the_ram(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000000\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("3000000\n", encoding="utf-8")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000\n", encoding="utf-8")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000_000))
    assert default_budget(CPU) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert default_budget(CPU) == 4_000_000


def test_the_way_back_counts_where_gradients_are_asked_for() -> None:
    layers = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)) for _ in range(3)]
    network = nn.Sequential(*layers).requires_grad_(False)
    forward = measured(network).bytes_per_voxel
    both = measure_pass(network, network, (1, 1, 16, 16), CPU, torch.float32, gradient=True).bytes_per_voxel
    # Forward alone frees each map; the graph keeps the result of every ReLU, and the block's input.
    assert both >= memory.WORKSPACE * 4 * (3 * 4 + 1)
    assert both > forward
    assert measured(network).bytes_per_voxel == forward
