"""Maps over noisy copies of the image: their mean, their mean square, their variance."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.attribution.base import Score, seeded
from unoise_monai.attribution.composed import ComposedAttributor, Method
from unoise_monai.types import Image


class NoisyMaps(ComposedAttributor):
    """Something of a gradient method's maps of the image with Gaussian noise on it.

    Every sample has noise of its own from the seed, however many go through at once: Captum's ``NoiseTunnel`` draws
    another noise where the memory is another, and refuses methods with several baselines.

    Args:
        network: see `Attributor`.
        method: a gradient method: its name, its class, or one that was made over ``network``.
        samples: noisy copies.
        sigma: of the noise, in units of normalised intensity. Smilkov et al. take 10% to 20% of the image's range.
        seed: of the noise; None draws from the global random state.
        progress: show a bar of the samples.
        method_options: of the method, where it is not made yet, such as ``{"substitute": True}``.
        **options: see `Attributor`; by default those of the method.

    ``notes`` hold the means of what the method notes of each sample.

    Raises:
        ValueError: when ``samples`` is below 1, ``sigma`` negative or not finite, or ``method`` refused, see
            `ComposedAttributor`; in the call, when the method refuses the network.
    """

    squares: ClassVar[bool] = False
    """Whether the map is of squares of the method's values, which are no contributions even where those are."""

    def __init__(
        self,
        network: nn.Module,
        method: Method = "saliency",
        samples: int = 25,
        sigma: float = 0.15,
        seed: int | None = 0,
        progress: bool = False,
        method_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, method, method_options, **options)
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be a finite number of at least 0, got {sigma}")
        self.samples, self.sigma, self.seed, self.progress = samples, sigma, seed, progress
        self.contributes = self.contributes and not self.squares

    @staticmethod
    @abstractmethod
    def of(mean: Tensor, variance: Tensor) -> Tensor:
        """The map, of the mean and the variance of the samples' maps."""

    def attribute(self, image: Image, score: Score) -> Tensor:
        plain = image.detach()
        self.check(image, score)
        at_once = self.at_once(score)
        mean, squares = torch.zeros_like(plain), torch.zeros_like(plain)
        sums: dict[str, float] = {}
        done = 0
        bar = tqdm(total=self.samples, desc=self.name, disable=not self.progress)
        with bar, seeded(self.seed, plain.device):
            while done < self.samples:
                count = min(at_once, self.samples - done)
                noisy = torch.cat([plain + self.sigma * torch.randn_like(plain) for _ in range(count)])
                # Welford's sums: the difference of two large squares would lose the variance to rounding.
                for values in self.maps(noisy, score, score.target, sums).split(1):
                    done += 1
                    change = values - mean
                    mean += change / done
                    squares += change * (values - mean)
                bar.update(count)
        score.notes |= {"samples": done, **{key: value / done for key, value in sums.items()}}
        return self.of(mean, squares / done)


class SmoothGrad(NoisyMaps):
    """The mean of the maps of noisy copies of the image, which leaves out what noise changes at random.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017. Costs ``samples`` times what the method costs.
    The mean is of signed values; the sign is taken of the mean.
    """

    name = "smooth_grad"

    @staticmethod
    def of(mean: Tensor, variance: Tensor) -> Tensor:
        return mean


class SmoothGradSquared(NoisyMaps):
    """The mean square of the maps of noisy copies of the image: voxels whose gradients cancel out count too.

    Hooker et al., "A benchmark for interpretability methods in deep neural networks", 2019. Costs ``samples`` times
    what the method costs. Its values have no sign.
    """

    name = "smooth_grad_squared"
    squares = True

    @staticmethod
    def of(mean: Tensor, variance: Tensor) -> Tensor:
        return variance + mean.square()


class VarGrad(NoisyMaps):
    """The variance of the maps over noisy copies of the image: where the gradient depends on small changes of it.

    Adebayo et al., "Local explanation methods for deep neural networks lack sensitivity to parameter values", 2018.
    Costs ``samples`` times what the method costs. Its values have no sign, and are 0 of a linear network.
    """

    name = "var_grad"
    squares = True

    @staticmethod
    def of(mean: Tensor, variance: Tensor) -> Tensor:
        return variance
