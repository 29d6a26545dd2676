"""Class activation maps: a layer's features, weighted by what they do for the target.

With a target of a segmentation, a sum of logits over voxels, these are what Vinogradova, Dibrov, Myers, "Towards
interpretable semantic segmentation via gradient-weighted class activation mapping", 2020, call Seg-Grad-CAM: of a
class's whole region (`class_sum`), of one voxel (`voxel`), or of any `Region`.

A layer's grid is coarse: the map of the bottleneck of a depth-4 U-Net has one value in 8 voxels along each axis, and
what lies between them is interpolated.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import CheckedAttributor, Score
from unoise_monai.attribution.guided import GuidedBackprop
from unoise_monai.attribution.layers import LayerAttributor, WindowScore, over_windows
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.types import Image


class CAM(LayerAttributor):
    """A weighted sum of a layer's features. One pass forward and back, and over windows one more forward.

    The default sign, ``"positive"``, is the papers' ReLU, on the layer's grid; ``"signed"`` is what goes into it.

    Args:
        network: see `Attributor`.
        layer: its name (`find_layers`) or path; Koker et al. 2021, Fig. 2, take the bottleneck.
        **options: see `Attributor`.
    """

    default_sign = "positive"

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        features, gradients = over_windows(partial(_features_and_gradients, layer), score, image)
        return self.weigh(features, gradients).sum(dim=1, keepdim=True)

    @abstractmethod
    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        """The weighted features, from features and the target's gradients, all ``(1, C', *grid)``."""


class GradCAM(CAM):
    """Each feature times its mean gradient: coarse areas whose features speak for the target.

    Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", 2017, Eq. 1
    and 2. The weights are means over the layer's whole grid, also where the target is one small structure, so a feature
    that speaks for it shows wherever the feature is active.
    """

    name = "grad_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * _mean(gradients)


class LayerGradCAM(GradCAM):
    """Grad-CAM with both signs, for comparing the layers of a network: Captum's ``LayerGradCam``, without the ReLU.

    Selvaraju et al. 2017, Eq. 1 and what goes into the ReLU of Eq. 2.
    """

    name = "layer_grad_cam"
    default_sign = "signed"


class GradCAMPlusPlus(CAM):
    """Grad-CAM with weights for each voxel of the layer, so that small structures count like large ones.

    Chattopadhay et al., "Grad-CAM++: Generalized gradient-based visual explanations for deep convolutional networks",
    2018, with its exponential of the score, whose higher derivatives are powers of the gradient. The weights depend
    on the target's scale: the mean over a region and the sum give different maps.

    Raises:
        ValueError: in the call, when a feature is negative, as those after a ReLU never are: the weights have a pole
            where the sum of negative features cancels the rest.
    """

    name = "grad_cam_plus_plus"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        if bool((features < 0).any()):
            raise ValueError(
                f"layer must give features of at least 0, such as those after a ReLU, for {self.name}, got "
                f"{float(features.min()):.3g}"
            )
        total = features.flatten(2).sum(dim=2).reshape(_over_channels(features))
        # g^2 / (2 g^2 + sum(A) g^3), with g^2 cancelled; where g is 0, the ReLU of g is, too.
        alpha = 1 / (2 + total * gradients)
        weights = (alpha * gradients.clamp_min(0)).flatten(2).sum(dim=2).reshape(_over_channels(features))
        return features * weights


class HiResCAM(CAM):
    """Each feature times its own gradient: of the last features before a linear head, what each added to the target.

    Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020.
    Nothing is averaged, so what a feature does elsewhere does not count.
    """

    name = "hires_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * gradients


class LayerCAM(CAM):
    """Each feature times its own gradient, where that is positive: sharp also in fine layers.

    Jiang et al., "LayerCAM: Exploring hierarchical class activation maps for localization", 2021.
    """

    name = "layer_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * gradients.clamp_min(0)


class GuidedGradCAM(CheckedAttributor):
    """Guided backpropagation where Grad-CAM is positive: fine detail within the coarse areas.

    Selvaraju et al., "Grad-CAM", 2017, Sec. 3.2: the product of both, with Grad-CAM's ReLU and up-sampled. Two passes
    forward and back. What is said of guided backpropagation holds: it partly recovers the image.

    Args:
        network: see `Attributor`.
        layer: of Grad-CAM.
        substitute: see `GuidedBackprop`.
        **options: see `Attributor`.

    Raises:
        ValueError: in the call, when the network has no such layer, or as for `GuidedBackprop`.
    """

    name = "guided_grad_cam"
    clips = True

    def __init__(self, network: nn.Module, layer: str = "bottleneck", substitute: bool = False, **options: Any) -> None:
        super().__init__(network, **options)
        self.cam = GradCAM(network, layer)
        self.guided = GuidedBackprop(network, substitute)

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return self.guided.check(image, volume) | self.cam.check(image, volume)

    def maps(self, images: Image, score: Score) -> Tensor:
        return self.guided.maps(images, score) * self.cam.maps(images, score)


def _features_and_gradients(layer: nn.Module, score: WindowScore, window: Image) -> tuple[Tensor, Tensor]:
    # By hand: Captum gives one or the other, at a pass forward each.
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        scores = score(window)
    finally:
        handle.remove()
    (gradients,) = torch.autograd.grad(scores.sum(), kept[0])
    return kept[0].detach(), gradients


def _over_channels(features: Tensor) -> tuple[int, ...]:
    return (*features.shape[:2], *[1] * (features.ndim - 2))


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=tuple(range(2, values.ndim)), keepdim=True)
