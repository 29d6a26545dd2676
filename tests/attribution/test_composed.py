"""Composed methods take the method, and what holds for it, from its name, its class or itself."""

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.attribution.backpropagation import GuidedBackprop
from unoise_monai.attribution.base import Attributor, Score
from unoise_monai.attribution.composed import ComposedAttributor, Method, SmoothGrad, VoxelwiseMean
from unoise_monai.attribution.gradient import IntegratedGradients, Saliency, note_convergence
from unoise_monai.attribution.targets import Region
from unoise_monai.networks import UNet

IMAGE = torch.randn(1, 1, 4, 6, generator=torch.Generator().manual_seed(0))
TARGET = Region(torch.ones(1, 1, 4, 6), 1)


class Twice(ComposedAttributor):
    """Twice the method's map."""

    name = "twice"

    def maps(self, images: Tensor, score: Score) -> Tensor:
        sums: dict[str, float] = {}
        maps = self.inner_maps(images.detach().repeat(2, 1, 1, 1), score, score.target, sums)
        score.notes["sums"] = sums
        return maps.sum(dim=0, keepdim=True)


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 2, depth=2, channel_factor=2)


NETWORK = unet()


@pytest.mark.parametrize("method", ["guided_backprop", GuidedBackprop, GuidedBackprop(NETWORK)])
def test_by_name_by_class_or_made(method: Method) -> None:
    expected = GuidedBackprop(NETWORK)(IMAGE, TARGET).as_tensor()
    attributor = Twice(NETWORK, method)
    torch.testing.assert_close(attributor(IMAGE, TARGET).as_tensor(), 2 * expected)
    assert attributor.volume.clips


@pytest.mark.parametrize("composed", [SmoothGrad, VoxelwiseMean])
def test_a_network_that_the_method_refuses_or_substitutes(composed: type[ComposedAttributor]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.PReLU())
    with pytest.raises(ValueError, match="guided_backprop has a rule for, got PReLU x 1"):
        composed(network, "guided_backprop")(IMAGE, TARGET)
    maps = composed(network, "guided_backprop", method_options={"substitute": True})(IMAGE, TARGET)
    assert maps.meta["attribution"][0]["substituted"] == {"PReLU": 1}


def test_every_gradient_method_by_its_name() -> None:
    assert {"saliency", "deconvolution", "gradient_shap", "deep_lift_shap"} < set(Twice.methods())
    for name, method in Twice.methods().items():
        assert method.name == name
        assert type(Twice(NETWORK, name).inner) is method


def test_options_of_the_method_and_its_own() -> None:
    attributor = Twice(NETWORK, "integrated_gradients", {"steps": 7, "sign": "signed"}, precision="bf16")
    assert isinstance(attributor.inner, IntegratedGradients)
    assert attributor.inner.steps == 7
    assert (attributor.sign, attributor.volume.precision, attributor.volume.clips) == ("signed", "bf16", False)
    made = Saliency(NETWORK, sign="positive", memory_gb=3.0, precision="bf16")
    like = Twice(NETWORK, made)
    assert (like.sign, like.volume.memory_gb, like.volume.precision) == ("positive", 3.0, "bf16")
    other = Twice(NETWORK, made, sign="signed", memory_gb=None, precision="fp32")
    assert (other.sign, other.volume.memory_gb, other.volume.precision) == ("signed", None, "fp32")
    assert Twice(NETWORK, made, sign=None).sign == "positive"


def test_notes_are_added_once_for_each_image() -> None:
    class Noting(Saliency):
        def maps(self, images: Tensor, score: Score) -> Tensor:
            values = super().maps(images, score)
            note_convergence(score, torch.ones_like(images), torch.full((len(images),), 4.0))
            return values

    notes = Twice(NETWORK, Noting)(IMAGE, TARGET).meta["attribution"][0]
    assert notes["sums"] == {"convergence_delta": 8.0, "score_difference": 40.0}


class Other(Attributor):
    name = "other"

    def maps(self, images: Tensor, score: Score) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("occlusion", None, "method must be one of 'saliency', 'input_x_gradient', 'integrated_gradients'"),
        (Other, None, "deep_lift_shap, by its name or class, got <class"),
        (Other(NETWORK), None, "deep_lift_shap, by its name or class, got <"),
        (Saliency(unet()), None, "method must be made over the network itself, got saliency over another"),
        (Saliency(NETWORK), {"sign": "signed"}, "method_options must be None where method is made, got {'sign'"),
    ],
)
def test_refusals(method: Method, options: dict | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Twice(NETWORK, method, options)
