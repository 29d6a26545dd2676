"""Precision follows the machine, float32 comes out, and the settings and the network stay as they were."""

from contextlib import nullcontext

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from unoise_monai.inference import memory as precision
from unoise_monai.inference.memory import (
    AutocastInferer,
    autocast,
    differentiable,
    resolve_precision,
    to_fast_layout,
    to_float32,
    without_tf32,
)
from unoise_monai.networks import UNet


def test_named_precision_is_taken() -> None:
    assert resolve_precision("cpu", "fp32") is torch.float32
    assert resolve_precision("cpu", "bf16") is torch.bfloat16
    assert resolve_precision("cuda", "fp16") is torch.float16


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch, fast: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: fast)
    assert resolve_precision("cpu") is expected
    assert resolve_precision("mps") is torch.float32


@pytest.mark.parametrize(("units", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, units: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: units or including_emulation)
    assert resolve_precision("cuda:0") is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True, "amx_bf16": False}, False)],
)
def test_fast_bf16_is_what_the_processor_tells(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision.cpu_has_fast_bf16() is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision.cpu_has_fast_bf16() is False


@pytest.mark.parametrize("expected", [True, False])
def test_fast_bf16_on_an_older_torch(monkeypatch: pytest.MonkeyPatch, expected: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert precision.cpu_has_fast_bf16() is expected


def test_bad_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of 'auto', 'fp32', 'bf16', 'fp16', got 'half'"):
        AutocastInferer(precision="half")
    with pytest.raises(ValueError, match="precision 'fp16' needs a GPU"):
        resolve_precision("cpu", "fp16")
    with pytest.raises(ValueError, match="needs a GPU"):
        AutocastInferer("fp16")(torch.zeros(1, 1, 4, 4), nn.Conv2d(1, 1, 1))


def test_fp32_stays_fp32_inside_an_outer_autocast() -> None:
    convolution, x = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with autocast("cpu", "fp32") as dtype:
            assert dtype is torch.float32
            assert convolution(x).dtype is torch.float32
        assert convolution(x).dtype is torch.bfloat16


@pytest.mark.parametrize("before", [True, False])
def test_fp32_is_without_tf32_and_gives_the_setting_back(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with autocast("cpu", "fp32"):
        inside = torch.backends.cudnn.allow_tf32
    assert not inside
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(RuntimeError, match="half way"), without_tf32():
        raise RuntimeError("half way")
    assert torch.backends.cudnn.allow_tf32 == before


def test_fp32_in_place_of_fp16_where_gradients_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert differentiable("cuda", "fp16") == "fp32"
    assert [differentiable("cpu", name) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    for units, expected in ((True, "auto"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, units=units: units)
        assert differentiable("cuda", "auto") == expected


@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fast_layout_puts_channels_last_and_keeps_values(size: tuple[int, ...], channels: int) -> None:
    x = torch.randn(2, channels, *size)
    fast = to_fast_layout(x, torch.bfloat16)
    assert torch.equal(fast, x)
    assert fast.stride()[1] == 1
    assert fast.stride()[-1] == channels
    assert to_fast_layout(x, torch.float32) is x


def test_fast_layout_reaches_the_last_convolution() -> None:
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, depth=2, channel_factor=2).eval()
    with torch.no_grad(), autocast("cpu", "bf16") as dtype:
        output = network(to_fast_layout(torch.randn(1, 1, 8, 8, 8), dtype))
    assert output.is_contiguous(memory_format=torch.channels_last_3d)


def test_float32_goes_through_every_container() -> None:
    half = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    output = to_float32({"a": [half, (half, "name")]}, MetaTensor(torch.zeros(1, 1, 2, 2), affine=affine))
    for tensor in (output["a"][0], output["a"][1][0]):
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor.affine, affine.double())
    assert output["a"][1][1] == "name"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_autocast_inferer_equals_the_network_and_leaves_it_alone(name: str) -> None:
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, depth=2, channel_factor=2).eval()
    before = {key: (value.clone(), value.stride()) for key, value in network.state_dict().items()}
    x = torch.randn(1, 1, 8, 8, 8)
    output = AutocastInferer(name)(x, network)
    assert output.dtype is torch.float32
    torch.testing.assert_close(output, network(x), atol=1e-6 if name == "fp32" else 0.05, rtol=0)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value.stride() == before[key][1]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_gradients_flow_to_weights_and_input_in_float32(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 6, 6, 6, requires_grad=True)
    network(x).square().mean().backward()
    assert network.weight.grad is not None
    assert x.grad is not None
    expected = network.weight.grad.clone(), x.grad.clone()
    network.zero_grad()
    x.grad = None
    AutocastInferer(name)(x, network).square().mean().backward()
    tolerance = 1e-6 if name == "fp32" else 0.02 * float(expected[0].abs().max())
    torch.testing.assert_close(network.weight.grad, expected[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(x.grad, expected[1], atol=tolerance, rtol=0)
    assert network.weight.grad.dtype is torch.float32


def test_autocast_inferer_passes_arguments_and_keeps_a_tuple() -> None:
    def network(x: torch.Tensor, shift: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        assert not isinstance(x, MetaTensor)
        return x * scale, (x + shift).bfloat16()

    x = MetaTensor(torch.ones(1, 1, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    first, second = AutocastInferer("fp32")(x, network, 1.0, scale=3.0)
    assert first.dtype is second.dtype is torch.float32
    assert float(first.max()) == 3.0
    assert float(second.max()) == 2.0
    assert torch.equal(first.affine, x.affine)


def test_auto_trains_in_fp32_where_it_would_be_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = {"auto": torch.float16, "fp32": torch.float32}
    monkeypatch.setattr(precision, "resolve_precision", lambda device, name="auto": dtypes[name])
    network, seen = nn.Conv2d(1, 1, 1), []
    monkeypatch.setattr(precision, "to_fast_layout", lambda x, dtype: seen.append(dtype) or x)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    AutocastInferer()(torch.ones(1, 1, 2, 2), network)
    with torch.no_grad():
        AutocastInferer()(torch.ones(1, 1, 2, 2), network)
    assert seen == [torch.float32, torch.float16]
