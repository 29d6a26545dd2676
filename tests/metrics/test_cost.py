"""Passes as Captum makes them, time and memory that are known, and nothing left behind."""

import math
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from captum.attr import DeepLift, FeatureAblation, GuidedBackprop, IntegratedGradients, LayerGradCam, Saliency
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.inference.tiling import TiledInferer
from unoise_monai.metrics.cost import _PEAKS, Cost, measure_cost
from unoise_monai.networks.unet import UNet

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Scalar(nn.Module):
    """A segmentation network and the scalar that is explained, ``(B,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, 1].flatten(1).sum(dim=1)


def occlusion(model: Scalar, x: Tensor) -> Tensor:
    quarters = torch.arange(4).view(1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return FeatureAblation(model).attribute(x, feature_mask=quarters, perturbations_per_eval=2)


@pytest.mark.parametrize(
    ("method", "forwards", "backwards"),
    [
        (lambda model, x: Saliency(model).attribute(x), 1, 1),
        (lambda model, x: GuidedBackprop(model).attribute(x), 1, 1),
        (lambda model, x: IntegratedGradients(model).attribute(x, n_steps=10), 10, 10),
        (lambda model, x: IntegratedGradients(model).attribute(x, n_steps=10, internal_batch_size=4), 10, 10),
        (lambda model, x: LayerGradCam(model, model.network[0]).attribute(x), 1, 1),
        (lambda model, x: DeepLift(model).attribute(x), 2, 2),
        (occlusion, 5, 0),
    ],
)
def test_counts_the_items_of_captum_s_passes(
    method: Callable[[Scalar, Tensor], Tensor], forwards: int, backwards: int
) -> None:
    model = Scalar()
    expected = method(model, IMAGE.clone().requires_grad_()).detach()
    with measure_cost(model.network, IMAGE) as cost:
        torch.testing.assert_close(method(model, IMAGE.clone().requires_grad_()).detach(), expected)
    assert (cost.forward_passes, cost.backward_passes) == (forwards, backwards)


def test_a_tile_is_its_part_of_the_volume() -> None:
    network = UNet(2, 1, 2, depth=2, channel_factor=2).eval()
    image = torch.randn(2, 1, 96, 32)
    inferer = TiledInferer(precision="fp32")
    with torch.no_grad():
        inferer(image[..., :16, :16], network)  # what a pass takes is measured once, by a pass
    with torch.no_grad(), measure_cost(network, image) as whole:
        inferer(image, network)
    assert (whole.forward_passes, whole.backward_passes) == (2, 0)
    windows: list[int] = []
    handle = network.register_forward_hook(lambda _, inputs, output: windows.append(inputs[0].shape[2:].numel()))
    with torch.no_grad(), measure_cost(network, image) as tiled:
        TiledInferer(memory_gb=0.0005, precision="fp32")(image, network)
    handle.remove()
    assert len(windows) > 1
    assert tiled.forward_passes == pytest.approx(2 * sum(windows) / (96 * 32))
    assert tiled.forward_passes > 2


def test_what_is_not_a_pass_back_does_not_count() -> None:
    network = Scalar().network
    with measure_cost(network, IMAGE) as cost:
        output = network(IMAGE)  # has a graph, as the weights need gradients
        network(IMAGE.expand(3, -1, -1, -1))
        assert cost.forward_passes == 4
        assert cost.backward_passes == 0
        for _ in range(2):
            torch.autograd.grad(output.sum(), list(network.parameters()), retain_graph=True)
    assert cost.backward_passes == 2
    output.sum().backward(retain_graph=True)  # the block has ended
    network(IMAGE)
    assert (cost.forward_passes, cost.backward_passes) == (4, 2)


class Heads(nn.Module):
    """Gives a dictionary of a tensor, a list, and no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, *, x: Tensor) -> dict[str, object]:
        return {"main": self.main(x), "sides": [self.side(x), x.detach()], "name": "heads"}


@pytest.mark.parametrize(
    "scalar",
    [
        lambda out: out["main"].sum(),
        lambda out: out["sides"][0].sum(),
        lambda out: out["main"].sum() + out["sides"][0].sum(),
    ],
)
def test_several_outputs_are_one_pass_back(scalar: Callable[[dict], Tensor]) -> None:
    network = Heads()
    with measure_cost(network, IMAGE) as cost:
        scalar(network(x=IMAGE)).backward()
    assert (cost.forward_passes, cost.backward_passes) == (1, 1)


def hooks(network: nn.Module) -> list[int]:
    return [
        len(found)
        for module in network.modules()
        for found in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ]


@pytest.mark.parametrize("memory", [False, True])
def test_nothing_stays_also_when_the_block_fails(memory: bool) -> None:
    network = Scalar().network.train()
    network[0].register_forward_hook(lambda *_: None)
    made: list[Tensor] = []

    def lose(output: Tensor) -> None:
        made.append(output)
        raise KeyError("lost")

    before, state = hooks(network), {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(KeyError, match="lost"), measure_cost(network, IMAGE, memory) as cost:
        lose(network(IMAGE))
    assert hooks(network) == before
    assert not made[0]._backward_hooks
    assert network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert cost.forward_passes == 1
    assert cost.seconds > 0
    assert (cost.peak_bytes is not None) == memory
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


@pytest.mark.parametrize("memory", [False, True])
def test_blocks_in_blocks_count_for_themselves(memory: bool) -> None:
    network = Scalar().network
    with measure_cost(network, IMAGE, memory) as outer:
        network(IMAGE)
        with measure_cost(network, IMAGE, memory) as inner:
            network(IMAGE.expand(2, -1, -1, -1)).sum().backward()
        network(IMAGE).sum().backward()
    assert (outer.forward_passes, outer.backward_passes) == (4, 3)
    assert (inner.forward_passes, inner.backward_passes) == (2, 2)
    assert outer.seconds > inner.seconds
    if memory:
        assert outer.peak_bytes >= inner.peak_bytes > 0


def test_seconds_and_the_default() -> None:
    with measure_cost(nn.Identity(), IMAGE) as cost:
        assert math.isnan(cost.seconds)
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 0.5
    assert cost == Cost(64, cost.seconds, None, 0, 0)


class Wide(nn.Module):
    """Holds 5 maps of the image's size at once, frees 4 of them, and gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.view(1, 1, -1) * self.weight.view(1, 4, 1)).sum(dim=1).view_as(x)


@pytest.mark.parametrize("wrap", [lambda x: x, MetaTensor])
def test_memory_is_the_peak_of_what_the_block_made(wrap: Callable[[Tensor], Tensor]) -> None:
    image, bytes_each = wrap(torch.randn(1, 1, 32, 32)), 4 * 32 * 32
    network = Wide()
    with torch.no_grad(), measure_cost(network, image, memory=True) as cost:
        for _ in range(3):
            network(image)
    assert cost.peak_bytes == 5 * bytes_each
    with torch.no_grad(), measure_cost(network, image, memory=True) as cost:
        image.add_(0).view(-1)
    assert cost.peak_bytes == 0


def test_memory_of_a_graph_counts_until_it_is_freed() -> None:
    """Ten squares save what they square; without gradients two of them live at once."""
    image, bytes_each = torch.rand(1, 1, 64, 64), 4 * 64 * 64

    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = x * x
        return x

    with torch.no_grad(), measure_cost(nn.Identity(), image, memory=True) as cost:
        chain(image)
    assert cost.peak_bytes == 2 * bytes_each
    leaf = image.clone().requires_grad_()
    with measure_cost(nn.Identity(), leaf, memory=True) as cost:
        output = chain(leaf)
        kept = cost.peak_bytes
        torch.autograd.grad(output.sum(), leaf)
    assert kept is None
    assert 10 * bytes_each < cost.peak_bytes <= 15 * bytes_each


class Allocator:
    """Stands for the statistics of CUDA's allocator, of one device."""

    def __init__(self) -> None:
        self.now, self.peak, self.waits = 100, 100, 0

    def take(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)

    def reset(self, _: torch.device) -> None:
        self.peak = self.now

    def wait(self, _: torch.device) -> None:
        self.waits += 1


class OnCuda(Tensor):
    device = torch.device("cuda", 0)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allocator]:
    fake = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: fake.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: fake.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", fake.reset)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.wait)
    return fake


def test_cuda_blocks_in_blocks_keep_the_outer_s_peak(allocator: Allocator) -> None:
    image, network = torch.zeros(1, 1, 4, 4).as_subclass(OnCuda), nn.Identity()
    allocator.take(500)
    allocator.take(-500)
    with measure_cost(network, image, memory=True) as outer:
        allocator.take(70)
        allocator.take(-60)
        with measure_cost(network, image, memory=True) as inner:
            allocator.take(30)
            allocator.take(-30)
        with pytest.raises(TypeError), measure_cost(network, image, memory=True) as failed:
            allocator.take(allocator.take(5))
    assert (outer.peak_bytes, inner.peak_bytes, failed.peak_bytes) == (70, 30, 5)
    with measure_cost(network, image, memory=True) as later, measure_cost(network, image, memory=True) as inner:
        allocator.take(40)
    assert (later.peak_bytes, inner.peak_bytes) == (40, 40)
    assert allocator.waits == 2 * 5
    assert not _PEAKS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda() -> None:
    image = torch.randn(1, 1, 64, 64, 64, device="cuda")
    network = nn.Conv3d(1, 8, 3, padding=1).to("cuda")
    with torch.no_grad(), measure_cost(network, image, memory=True) as cost:
        network(image)
    assert cost.peak_bytes >= 8 * 4 * 64**3
    assert cost.forward_passes == 1


def test_refuses_what_it_cannot_count() -> None:
    network = nn.Identity()
    with pytest.raises(ValueError, match="got no tensor in a call of Identity"), measure_cost(network, IMAGE):
        network(3)
    scripted = torch.jit.script(Scalar().network)
    with pytest.raises(RuntimeError, match="not supported on ScriptModules"), measure_cost(scripted, IMAGE):
        scripted(IMAGE)
    wrapped = nn.Sequential(scripted)
    with measure_cost(wrapped, IMAGE) as cost:
        wrapped(IMAGE).sum().backward()
    assert (cost.forward_passes, cost.backward_passes) == (1, 1)
