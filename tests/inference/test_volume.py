"""A network over volumes: padded and cut back, and in tiles the same values and gradients as in one pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.inference import memory as precision
from unoise_monai.inference import tiling as volume_module
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet


def unet(spatial_dims: int = 3, in_channels: int = 1) -> UNet:
    torch.manual_seed(0)
    network = UNet(spatial_dims, in_channels, 3, depth=2, channel_factor=3).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network


def gradient(volume: VolumeNetwork, image: Tensor, squared: bool = False) -> Tensor:
    image = image.clone().requires_grad_()
    logits = volume(image)
    return torch.autograd.grad((logits**2 if squared else logits)[:, 1:, 3:-3].sum(), image)[0]


@pytest.mark.parametrize("size", [(13, 10), (7, 10, 9)])
def test_a_volume_off_the_stride_is_padded_with_its_last_voxels_and_cut_back(size: tuple[int, ...]) -> None:
    network = unet(len(size))
    image = torch.randn(2, 1, *size)
    padded = F.pad(image, [n for side in reversed(size) for n in (0, side % 2)], "replicate")
    expected = network(padded)[(..., *(slice(side) for side in size))]
    torch.testing.assert_close(VolumeNetwork(network)(image), expected, rtol=0, atol=0)
    with torch.no_grad():
        assert VolumeNetwork(network)(image).shape == (2, 3, *size)


@pytest.mark.parametrize(("clips", "memory_gb"), [(False, 0.04), (True, 0.06)])
@pytest.mark.parametrize("squared", [False, True])
def test_tiles_give_the_logits_and_gradients_of_one_pass(clips: bool, memory_gb: float, squared: bool) -> None:
    network, image = unet(), torch.randn(1, 1, 50, 37, 40)
    tiled, whole = VolumeNetwork(network, memory_gb, clips=clips), VolumeNetwork(network)
    assert len(tiled.tiles(tiled.pad(image.requires_grad_())) or []) > 1
    assert whole.tiles(whole.pad(image)) is None
    torch.testing.assert_close(tiled(image), whole(image), rtol=1e-5, atol=1e-5)
    expected = gradient(whole, image, squared)
    torch.testing.assert_close(
        gradient(tiled, image, squared), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


def clip(module: nn.Module, before: object, after: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Guided backpropagation's rule at a ReLU."""
    return (before[0].clamp_min(0),)  # type: ignore[index]


def test_a_rule_that_clips_needs_all_that_a_voxel_reaches_in_its_window() -> None:
    network, image = unet(), torch.randn(1, 1, 50, 37, 40)
    volumes = [VolumeNetwork(network), VolumeNetwork(network, 0.06, clips=True), VolumeNetwork(network, 0.04)]
    for volume in volumes:
        gradient(volume, image)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_full_backward_hook(clip)
    whole, exact, added = (gradient(volume, image) for volume in volumes)
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-6)
    assert float((added - whole).abs().max()) > 0.01 * float(whole.abs().max())


def test_a_network_that_cannot_be_tiled_names_the_memory_it_needs() -> None:
    network = unet()
    network.encoder[0][1] = nn.InstanceNorm3d(8)
    with pytest.raises(MemoryError, match=r"memory_gb must be at least .* cannot be tiled exactly .*InstanceNorm3d"):
        VolumeNetwork(network, 0.01)(torch.randn(1, 1, 40, 40, 40))
    with pytest.raises(MemoryError, match="memory_gb must be at least"):
        VolumeNetwork(unet(), 0.001)(torch.randn(1, 1, 40, 40, 40))


def test_a_network_given_in_training_mode_is_tiled_as_it_runs() -> None:
    network = unet().train()
    volume = VolumeNetwork(network, 0.04)
    network.eval()
    assert len(volume.tiles(torch.zeros(1, 1, 50, 38, 40).requires_grad_()) or []) > 1


def test_a_foreign_network_goes_through_in_one_pass_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    network, image = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 9, 7)
    free, bound = VolumeNetwork(network), VolumeNetwork(network, memory_gb=1e-6)
    for _ in range(2):
        torch.testing.assert_close(free(image), network(image), rtol=0, atol=0)
    assert free.bounded
    assert not caplog.messages
    for _ in range(2):
        torch.testing.assert_close(bound(image), network(image), rtol=0, atol=0)
    assert not bound.bounded
    (message,) = caplog.messages
    assert message.startswith("memory_gb=1e-06 is not kept: Conv2d does not tell its stride")
    own = Own()
    assert VolumeNetwork(own, memory_gb=1e-6).bounded
    with pytest.raises(ValueError, match="one tensor on its input's grid"):
        VolumeNetwork(nn.Conv2d(1, 2, 3))(image)


class Own(nn.Module):
    """Somebody's network, of which they told what `VolumeNetwork` asks."""

    stride, halo = 1, 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_network_that_is_told_about_is_tiled() -> None:
    network, image = Own(), torch.randn(1, 1, 150, 40)
    tiled = VolumeNetwork(network, 0.0004)
    assert len(tiled.tiles(image.requires_grad_()) or []) > 1
    torch.testing.assert_close(tiled(image), network(image), rtol=1e-5, atol=1e-6)


def test_copies_fill_the_memory_that_is_given() -> None:
    network, image = unet(2), torch.randn(1, 1, 32, 32)
    assert VolumeNetwork(network).copies(image) == 1
    few, many = (VolumeNetwork(network, memory_gb).copies(image) for memory_gb in (0.01, 0.02))
    assert 1 < few < many
    assert many / few == pytest.approx(2, rel=0.2)
    assert VolumeNetwork(network, 1e-5).copies(image) == 1


def test_what_was_measured_is_not_measured_again() -> None:
    network, image = unet(2), torch.randn(1, 1, 32, 32)
    calls: list[bool] = []
    volume = VolumeNetwork(network, 0.01)
    volume.copies(image)
    network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    volume.copies(image)
    gradient(volume, image)
    with torch.no_grad():
        volume(image)
    assert calls == [True, False]


def test_bf16_is_near_fp32() -> None:
    network, image = unet(), torch.randn(1, 1, 12, 12, 12)
    exact, fast = (gradient(VolumeNetwork(network, precision=name), image) for name in ("fp32", "bf16"))
    assert fast.dtype == torch.float32
    assert 0 < float((exact - fast).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("memory_gb", [None, 0.04])
def test_gradients_are_not_in_fp16_where_they_would_be_0(
    monkeypatch: pytest.MonkeyPatch, memory_gb: float | None
) -> None:
    dtypes = {"fp16": torch.float16, "fp32": torch.float32}
    for module in (precision, volume_module):
        monkeypatch.setattr(module, "resolve_precision", lambda device, name="auto": dtypes[name])
    network, image, seen = unet(), torch.randn(1, 1, 50, 37, 40), []
    network.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half, full = (VolumeNetwork(network, memory_gb, name) for name in ("fp16", "fp32"))
    copies = [image.clone().requires_grad_() for _ in range(2)]
    maps = [torch.autograd.grad(1e-9 * net(x).sum(), x)[0] for net, x in zip((half, full), copies, strict=True)]
    assert float(maps[1].abs().max()) > 0
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=0)
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.no_grad():
        half(image)
    assert set(seen) == {torch.float16}


def test_tiles_go_back_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network, image, seen = unet(), torch.randn(1, 1, 50, 37, 40, requires_grad=True), []
    logits = VolumeNetwork(network, 0.04)(image)
    network.head.register_full_backward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    logits.sum().backward()
    assert len(seen) > 1
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_gb must be above 0, got 0"):
        VolumeNetwork(unet(2), memory_gb=0)
    with pytest.raises(ValueError, match="precision must be one of"):
        VolumeNetwork(unet(2), precision="x")
