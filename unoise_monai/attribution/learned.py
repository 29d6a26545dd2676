"""The noise model as a method, and the controls that ask no network."""

from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, Score, register, seeded
from unoise_monai.attribution.targets import Target
from unoise_monai.types import Image
from unoise_monai.unoise import ExplainedSegmenter


@register
class Learned(Attributor):
    """The importance that a noise model has learned: ``1 - sigmoid(noise_model(x))``, in [0, 1].

    Koker et al., "U-Noise: Learnable noise masks for interpretable image segmentation", 2021, section 3. Costs one pass
    forward of the noise model. It explains the whole segmentation, whatever the target.

    The ``noise_model``, ``(B, C, *spatial)`` to tolerance logits ``(B, 1, *spatial)``, becomes the attributor's
    ``network``, whose weights a randomisation test makes random; the segmentation network that it was trained against
    is not run. In the call, a ValueError where the noise model does not give one channel.
    """

    name = "unoise"
    needs = ("noise_model",)
    differentiates = False
    default_sign = "positive"

    def __init__(self, network: nn.Module, noise_model: nn.Module, **options: Any) -> None:
        super().__init__(noise_model, **options)
        self.utility = network

    @classmethod
    def of(cls, segmenter: ExplainedSegmenter, **options: Any) -> "Learned":
        """The attributor of a segmenter's own noise model."""
        return cls(segmenter.utility, segmenter.noise_model, **options)

    def maps(self, images: Image, score: Score) -> Tensor:
        with torch.no_grad():
            tolerance = score.volume(images)
        if tolerance.shape[1] != 1:
            raise ValueError(f"noise_model must give one channel, got {tolerance.shape[1]}")
        return torch.sigmoid(-tolerance)


class Control(Attributor):
    """A map without a pass of the network, whatever the target."""

    control = True
    differentiates = False

    def score(self, image: Image, target: Target) -> Score:
        return Score(self.volume, target)


@register
class Random(Control):
    """Uniform noise in [0, 1): voxels in any order.

    Costs no pass. One seed gives one map for all images of a size, on any device; None draws from the global state.
    """

    name = "random"

    def __init__(self, network: nn.Module, seed: int | None = 0, **options: Any) -> None:
        super().__init__(network, **options)
        self.seed = seed

    def maps(self, images: Image, score: Score) -> Tensor:
        with seeded(self.seed, torch.device("cpu")):
            return torch.rand(1, 1, *images.shape[2:]).to(images.device)


@register
class Intensity(Control):
    """How far each voxel is from 0 in normalised intensity, which is how much zeroing changes it. Costs no pass."""

    name = "intensity"

    def maps(self, images: Image, score: Score) -> Tensor:
        return images.detach()


@register
class EdgeMagnitude(Control):
    """The magnitude of the image's own gradient per voxel, whatever its spacing, by central differences.

    Adebayo et al., "Sanity checks for saliency maps", 2018: to the eye, what an edge detector shows looks like an
    explanation. Costs no pass.
    """

    name = "edges"

    def maps(self, images: Image, score: Score) -> Tensor:
        # An axis of a single voxel has no differences.
        axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
        steps = torch.gradient(images.detach(), dim=axes)
        return torch.stack(steps).square().sum(dim=0).sqrt()
