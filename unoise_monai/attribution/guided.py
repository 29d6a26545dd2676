"""Gradients that are clipped at the activations: guided backpropagation and the deconvolution network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import captum.attr
from torch import Tensor, nn

from unoise_monai.attribution.backward_rules import backward_rule
from unoise_monai.attribution.base import Score
from unoise_monai.attribution.gradient import GradientAttributor
from unoise_monai.attribution.rectifiers import RECTIFIERS, activations
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.types import Image


class ClippedGradient(GradientAttributor):
    """A gradient with a rule of its own at the ReLUs.

    Args:
        network: see `Attributor`.
        substitute: apply the rule to activation modules of other kinds too, such as PReLU, for which it was not made;
            ``notes["substituted"]`` counts them. Else such networks are refused.
        **options: see `Attributor`.

    Raises:
        ValueError: in the call, when the network has other activations than ReLU and ``substitute`` is False, or has
            functional ones, see `activations`.
    """

    clips = True

    def __init__(self, network: nn.Module, substitute: bool = False, **options: Any) -> None:
        super().__init__(network, **options)
        self.substitute = substitute

    @staticmethod
    @abstractmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        """What goes back from a ReLU, of its gradient and of what came to it from above."""

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return check_clipping(volume, image, self.name, self.substitute)

    def maps(self, images: Image, score: Score) -> Tensor:
        with clipping(score.volume.network, self.substitute, self.clipped):
            return captum.attr.Saliency(score).attribute(images, abs=False)


def check_clipping(volume: VolumeNetwork, image: Image, method: str, substitute: bool) -> dict[str, Any]:
    """Refuse a network that `clipping` does not reach, see `Activations.check`; notes what is substituted."""
    substituted = activations(volume, image).check(method, substitute)
    return {"substituted": substituted} if substituted else {}


@contextmanager
def clipping(network: nn.Module, substitute: bool, clipped: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Send what ``clipped`` gives back from each ReLU, or with ``substitute`` from each rectifier."""
    kinds = RECTIFIERS if substitute else (nn.ReLU,)
    modules = [module for module in network.modules() if isinstance(module, kinds)]
    with backward_rule(modules, lambda inputs, output: clipped):
        yield


class GuidedBackprop(ClippedGradient):
    """The gradient without what turns negative on its way back: only what speaks for the target, ReLU by ReLU.

    Springenberg et al., "Striving for simplicity: the all convolutional net", 2014. One pass forward and back. Sharp,
    and in part independent of the target: it partly recovers the image (Nie et al., 2018). Of a target that sums
    voxels, it is not the sum of the voxels' maps, see `VoxelwiseMean`.
    """

    name = "guided_backprop"

    @staticmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        return gradient.clamp_min(0)


class Deconvolution(ClippedGradient):
    """What comes from above, without its negative part, in place of the gradient of each ReLU.

    Zeiler, Fergus, "Visualizing and understanding convolutional networks", 2014. One pass forward and back. It does not
    look at which ReLUs the image opened, so the image matters at the pooling alone.
    """

    name = "deconvolution"

    @staticmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        return upstream.clamp_min(0)
