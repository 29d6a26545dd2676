"""Networks that are not ours: those of MONAI on odd sizes, TorchScript, and outputs that nobody can explain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from small import Shallow, picture
from torch import Tensor, nn

from unoise_monai.attribution import METHODS, GuidedBackprop, HardDice, Saliency, foreground_sum, make_attributor
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import ClassLogits
from unoise_monai.networks.outputs import find_stride

ODD = (33, 38, 29)


def seg_res_net() -> nn.Module:
    return SegResNet(3, 4, 1, 2, norm=("group", {"num_groups": 2}), blocks_down=(1, 1, 1), blocks_up=(1, 1))


def dyn_unet() -> nn.Module:
    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8])


def swin_unetr() -> nn.Module:
    pytest.importorskip("einops", reason="SwinUNETR needs einops")
    return SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))


NETWORKS = {
    "SegResNet": (seg_res_net, 4, {}),
    "DynUNet": (dyn_unet, 4, {"LeakyReLU": 5}),
    "SwinUNETR": (swin_unetr, 32, {"GELU": 4, "LeakyReLU": 10}),
}


@pytest.mark.parametrize(("make", "stride", "others"), NETWORKS.values(), ids=NETWORKS)
def test_monai_s_networks_on_odd_sizes(make: Callable[[], nn.Module], stride: int, others: dict[str, int]) -> None:
    torch.manual_seed(0)
    network, image = make().eval(), picture(*ODD)
    assert find_stride(network) == stride
    wrapped = ClassLogits(network, stride=stride)
    with torch.no_grad():
        target = foreground_sum(VolumeNetwork(wrapped)(image))
    for method in (Saliency(wrapped), GuidedBackprop(wrapped, substitute=True)):
        values = method(image, target)
        assert values.shape == (1, 1, *ODD)
        # To the last voxel: nothing is lost where the volume was padded.
        assert all(values.narrow(axis, values.shape[axis] - 1, 1).any() for axis in (2, 3, 4))
        assert values.isfinite().all()
    assert values.meta["attribution"][0].get("substituted", {}) == others
    if others:
        with pytest.raises(ValueError, match=r"guided_backprop .* LeakyReLU x .*; substitute=True applies it"):
            GuidedBackprop(wrapped)(image, target)
    # The network by itself says what to do, and then does it.
    with pytest.raises(ValueError, match=r"network must take an image \(1, 1, 33, 38, 29\), or .*network\.stride = "):
        Saliency(network)(image, target)
    network.stride = stride
    torch.testing.assert_close(Saliency(network)(image, target), Saliency(wrapped)(image, target))


def scripted(network: nn.Module, path: Path) -> nn.Module:
    return torch.jit.script(network)


def frozen(network: nn.Module, path: Path) -> nn.Module:
    return torch.jit.freeze(torch.jit.script(network))


def traced(network: nn.Module, path: Path) -> nn.Module:
    return torch.jit.trace(network, picture(8, 8, 8))


def loaded(network: nn.Module, path: Path) -> nn.Module:
    torch.jit.script(network).save(path / "model.ts")
    return torch.jit.load(path / "model.ts")


def sequence() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv3d(3, 2, 1)).eval()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kind", [scripted, frozen, traced, loaded])
def test_torchscript(kind: Callable[[nn.Module, Path], nn.Module], wrap: bool, tmp_path: Path) -> None:
    plain, image = sequence(), picture(7, 9, 8)
    script = kind(sequence(), tmp_path)
    network = ClassLogits(script, stride=1) if wrap else script
    before = script(image)
    target = foreground_sum(plain(image).detach())
    quick: dict[str, dict[str, Any]] = {"integrated_gradients": {"steps": 4}, "occlusion": {"window": 3, "stride": 2}}
    for name in ("saliency", "integrated_gradients", "occlusion"):
        options = quick.get(name, {})
        expected = make_attributor(name, plain, **options)(image, target)
        torch.testing.assert_close(make_attributor(name, network, **options)(image, target), expected)
    torch.testing.assert_close(script(image), before)
    for name in ("guided_backprop", "deep_lift", "grad_cam", "layer_conductance", "iterative_roi"):
        with pytest.raises(ValueError, match=r"got a scripted one: load its weights .* such as saliency"):
            make_attributor(name, network)(image, target)


class Ending(nn.Module):
    """A network whose output ends in something."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.end = Shallow(nn.ReLU(), 3), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x))


ONE_TENSOR = r"network must give one tensor on its input's grid \(1, 1, 8, 8, 8\), got "
ENDINGS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "list": (lambda x: [x, x[..., ::2, ::2, ::2]], ONE_TENSOR + r"list\. .*ClassLogits\(network, pick="),
    "dictionary": (lambda x: {"out": x}, ONE_TENSOR + r"dict\. .*ClassLogits\(network, pick="),
    "smaller": (lambda x: x[..., :-1], ONE_TENSOR + r"\(1, 2, 8, 8, 7\)\. .*network\.stride = "),
    "no grid": (lambda x: x.mean((2, 3, 4)), ONE_TENSOR + r"\(1, 2\)"),
    "argmax": (lambda x: x.argmax(1, keepdim=True).float(), "network must give logits with a gradient, got .* argmax"),
    "detached": (lambda x: x.detach(), "network must give logits with a gradient, got .* detach"),
}


@pytest.mark.parametrize(("end", "message"), ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "deep_lift", "grad_cam", "integrated_gradients"])
def test_outputs_that_cannot_be_explained_say_what_to_do(
    method: str, end: Callable[[Tensor], Any], message: str
) -> None:
    network, image = Ending(end), picture(8, 8, 8)
    with pytest.raises(ValueError, match=message):
        make_attributor(method, network)(image, foreground_sum(picture(8, 8, 8, channels=2)))


def test_an_output_without_a_gradient_can_be_occluded() -> None:
    network = Ending(lambda x: x.detach())
    with torch.no_grad():
        target = foreground_sum(network(picture(8, 8, 8)))
    assert METHODS["occlusion"](network)(picture(8, 8, 8), target).any()


def test_a_target_without_a_gradient_is_refused() -> None:
    labels = torch.ones(1, 1, 8, 8, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"target must have a gradient for this method, got .*HardDice"):
        Saliency(Shallow(nn.ReLU(), 3))(picture(8, 8, 8), HardDice(labels, 1))


def test_another_number_of_channels_is_told() -> None:
    with pytest.raises(ValueError, match=r"must take an image \(1, 2, 8, 8, 8\), .* to have 1 channels, but got 2"):
        Saliency(Shallow(nn.ReLU(), 3))(picture(8, 8, 8, channels=2), foreground_sum(picture(8, 8, 8, channels=2)))
