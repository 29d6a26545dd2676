"""U-Noise in three dimensions: a frozen utility network and the noise model that explains it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unoise_monai.checks import check_choice, check_finite, check_sigma_range
from unoise_monai.types import Image, Logits, VoxelMap

NOISE_FORMS = ("scaled", "printed")


class ExplainedSegmenter(nn.Module):
    """A segmentation network and its noise model as one ordinary network: what is saved, exported and served.

    The utility network is frozen: no gradients for its parameters, and in evaluation mode whatever this module's is.

    Args:
        utility: a trained segmentation network, ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.
        noise_model: ``(B, C, *spatial)`` to tolerance logits ``(B, 1, *spatial)``.

    Shape:
        ``(B, C, *spatial)`` to ``(B, K + 1, *spatial)``: the utility's logits of the clean image, then the importance
        ``1 - B`` in [0, 1], with ``B = sigmoid(noise_model(x))`` (Koker et al. 2021, section 3).
    """

    def __init__(self, utility: nn.Module, noise_model: nn.Module) -> None:
        super().__init__()
        # Not of the module, which TorchScript's cannot.
        for parameter in utility.parameters():
            parameter.requires_grad_(False)
        self.utility = utility
        self.noise_model = noise_model
        self.stride = _combined(utility, noise_model, "stride", math.lcm)
        """The grid, in voxels, of the input's sides; None where a part has none."""
        self.halo = _combined(utility, noise_model, "halo", max)
        """The voxels of context that a block on that grid needs beyond its faces; None where a part has none."""
        self.train(self.training)

    def train(self, mode: bool = True) -> "ExplainedSegmenter":
        super().train(mode)
        self.utility.eval()
        return self

    def forward(self, x: Image) -> Tensor:
        # sigmoid(-z) is 1 - sigmoid(z) without the rounding of the difference; in float32 also under autocast, for half
        # precision knows no importance between 0.996 and 1.
        return torch.cat([self.utility(x), torch.sigmoid(-self.noise_model(x).float())], dim=1)

    def tolerance(self, x: Image) -> VoxelMap:
        """How much noise each voxel can bear: ``B`` in [0, 1], ``(B, 1, *spatial)``."""
        return torch.sigmoid(self.noise_model(x).float())


class UNoise(nn.Module):
    """Adds the noise that the noise model allows, and segments: the training wrapper of an `ExplainedSegmenter`.

    Koker et al., "U-Noise: Learnable noise masks for interpretable image segmentation", 2021, Eq. 1 and Algorithm 1.
    All channels of an image share one tolerance map; each draws its own noise.

    Args:
        segmenter: the utility and the noise model; it is trained in place.
        sigma_min: noise scale where the tolerance is 0, in units of normalised intensity.
        sigma_max: noise scale where the tolerance is 1, in the same units.
        noise_form: ``"scaled"`` adds ``(sigma_min + B (sigma_max - sigma_min)) * eps``, as the paper's text and
            results need; ``"printed"`` adds ``B (sigma_max - sigma_min) * eps + sigma_min``, Eq. 1 to the letter.

    Shape:
        ``(B, C, *spatial)`` to a pair: the utility's logits of the noised image ``(B, K, *spatial)``, and the
        tolerance logits ``z`` ``(B, 1, *spatial)``.

    Raises:
        ValueError: when ``sigma_max`` is not above ``sigma_min``, one of them is negative or not finite, or
            ``noise_form`` is unknown; in ``forward``, when the image holds NaN or infinite voxels, or when the noise
            model's output is not one channel on the image's grid.
    """

    def __init__(
        self, segmenter: ExplainedSegmenter, sigma_min: float = 1.0, sigma_max: float = 5.0, noise_form: str = "scaled"
    ) -> None:
        super().__init__()
        check_sigma_range(sigma_min, sigma_max)
        check_choice("noise_form", noise_form, NOISE_FORMS)
        self.segmenter, self.noise_form = segmenter, noise_form
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def forward(self, x: Image) -> tuple[Logits, VoxelMap]:
        check_finite(x, "image")
        z = tolerance_logits(self.segmenter, x)
        return self.segmenter.utility(self.noised(x, torch.sigmoid(z))), z

    def noised(self, x: Image, tolerance: VoxelMap) -> Image:
        """The image with noise of the scale that ``tolerance`` allows (Eq. 1), differentiable in ``tolerance``."""
        eps = torch.randn_like(x)
        scale = tolerance * (self.sigma_max - self.sigma_min)
        if self.noise_form == "printed":
            return x + scale * eps + self.sigma_min
        return x + (self.sigma_min + scale) * eps


def tolerance_logits(segmenter: ExplainedSegmenter, x: Image) -> VoxelMap:
    """The noise model's output, checked: ``z`` ``(B, 1, *spatial)`` with ``B = sigmoid(z)``.

    Raises:
        ValueError: when it is not one channel on the image's grid.
    """
    z: VoxelMap = segmenter.noise_model(x)
    expected = (x.shape[0], 1, *x.shape[2:])
    if tuple(z.shape) != expected:
        raise ValueError(f"noise_model must give one channel on the image's grid, {expected}, got {tuple(z.shape)}")
    return z


def _combined(utility: nn.Module, noise_model: nn.Module, name: str, combine: Callable[[int, int], int]) -> int | None:
    first, second = getattr(utility, name, None), getattr(noise_model, name, None)
    return combine(first, second) if isinstance(first, int) and isinstance(second, int) else None
