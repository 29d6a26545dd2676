"""Methods made of other methods: products, noise tunnels, the mean of voxels' maps."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.attribution.base import Attributor, CheckedAttributor, Score, seeded, signed
from unoise_monai.attribution.cam import GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM
from unoise_monai.attribution.deeplift import DeepLift, DeepLiftShap
from unoise_monai.attribution.gradient import (
    GradientAttributor,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    Saliency,
)
from unoise_monai.attribution.guided import Deconvolution, GuidedBackprop
from unoise_monai.attribution.targets import Region, Target, class_logits
from unoise_monai.checks import check_choice
from unoise_monai.types import Image, Logits

logger = logging.getLogger(__name__)

Method: TypeAlias = str | type[Attributor] | Attributor
"""A method: its name, its class, or one that was made over the same network."""

GRADIENT_METHODS: Mapping[str, type[Attributor]] = {
    method.name: method
    for method in (
        Saliency,
        InputXGradient,
        GuidedBackprop,
        Deconvolution,
        IntegratedGradients,
        GradientShap,
        DeepLift,
        DeepLiftShap,
    )
}


class ComposedAttributor(Attributor):
    """The mean, or the like, of maps of a gradient method.

    Args:
        network: see `Attributor`.
        method: see `Method`.
        method_options: of the method, where it is not made yet, such as ``{"substitute": True}``.
        **options: see `Attributor`; by default those of the method.

    Raises:
        ValueError: when ``method`` is unknown, no gradient method or made over another network, or
            ``method_options`` come with one that is made.
    """

    methods: ClassVar[Mapping[str, type[Attributor]]] = GRADIENT_METHODS
    """The methods that it can be made of."""

    def __init__(
        self, network: nn.Module, method: Method, method_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        if isinstance(method, CheckedAttributor) and self._takes(type(method)):
            if method.network is not network:
                raise ValueError(f"method must be made over the network itself, got {method.name} over another")
            if method_options:
                raise ValueError(f"method_options must be None where method is made, got {dict(method_options)}")
            self.inner: CheckedAttributor = method
        else:
            # A CAM takes its sign on the layer's own grid, before anything else can.
            inner_options: dict[str, Any] = {"sign": options.get("sign"), **(method_options or {})}
            self.inner = self._class_of(method)(network, **inner_options)
        volume = self.inner.volume
        like_inner = {"memory_gb": volume.memory_gb, "precision": volume.precision}
        if options.get("sign") is None:
            options["sign"] = self.inner.sign
        super().__init__(network, **(like_inner | options))
        self.volume.clips = self.inner.clips
        self.contributes = self.inner.contributes

    def at_once(self, score: Score) -> int:
        """How many images the method takes in a pass; one of those that keep a layer's features."""
        return max(1, score.copies // self.inner.copies_each) if isinstance(self.inner, GradientAttributor) else 1

    def check(self, image: Image, score: Score) -> None:
        """Refuse a network that the method refuses; else note what it says of it, for all its maps."""
        score.notes |= self.inner.check(image, score.volume)

    def maps(self, images: Image, score: Score, target: Target, sums: dict[str, float]) -> Tensor:
        """The method's signed maps of n images; what it notes of them is added to ``sums``, n times."""
        part = Score(score.volume, target, score.copies)
        part.notes |= {key: value for key, value in score.notes.items() if not isinstance(value, (int, float))}
        maps = self.inner.maps(images.requires_grad_(), part).detach()
        for key, value in part.notes.items():
            if isinstance(value, (int, float)):
                sums[key] = sums.get(key, 0.0) + len(images) * value
            else:
                score.notes[key] = value
        return maps

    def _class_of(self, method: Method) -> type[CheckedAttributor]:
        if isinstance(method, str):
            check_choice("method", method, tuple(self.methods))
            method = self.methods[method]
        if not (isinstance(method, type) and issubclass(method, CheckedAttributor) and self._takes(method)):
            raise ValueError(f"method must be {', '.join(self.methods)}, by its name or class, got {method!r}")
        return method

    def _takes(self, method: type) -> bool:
        """Whether a class is a gradient method, one's own among them, or another that it can be made of."""
        return issubclass(method, (GradientAttributor, *self.methods.values()))


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


CAMS: tuple[type[CheckedAttributor], ...] = (GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, GuidedGradCAM)


class VoxelwiseMean(ComposedAttributor):
    """The mean, over the voxels of a region, of a gradient or CAM method's maps of each voxel's logit.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images", section IV, where the region
    is the segment's border: ``VoxelwiseMean(network)(image, border_mean(logits, label))``. Costs what the method costs
    for every voxel, thousands of times a volume. Signed maps of methods that are linear in the target (saliency, input
    times gradient, integrated gradients, DeepLIFT) are, in the mean, the map of the region itself: ask for that, in
    one go. Guided backpropagation and deconvolution are not linear, nor are the magnitude and Grad-CAM's ReLU.

    Args:
        network: see `Attributor`.
        method: a gradient method or a CAM: its name, its class, or one that was made over ``network``.
        max_voxels: of a larger region, this many are drawn; None for all.
        seed: of the draw, and of the order that voxels are taken in; None draws from the global random state.
        progress: show a bar of the voxels.
        time_limit_s: seconds an item after which no further voxel is begun; the map is then the mean so far, ``notes``
            hold ``stopped_after_s``, and a warning is logged.
        method_options: of the method, where it is not made yet, such as ``{"substitute": True}``.
        **options: see `Attributor`; by default those of the method. ``sign`` is taken of each voxel's map.

    Shape:
        called with an image and a `Region`; of one that sums, the sum of the maps, in place of their mean. Where its
        mask has weights, each voxel's logit counts with its weight.

    ``notes`` hold how many voxels the region has (``voxels``), were ``planned`` and ``evaluated``, and what the method
    notes, in the mean or the sum as the maps.

    Raises:
        ValueError: when ``max_voxels`` is below 1, ``time_limit_s`` not above 0, or ``method`` refused, see
            `ComposedAttributor`; in the call, when the target is no `Region` on the image's grid, or the method refuses
            the network.
    """

    name = "voxelwise_mean"
    methods = MappingProxyType({**GRADIENT_METHODS, **{method.name: method for method in CAMS}})

    def __init__(
        self,
        network: nn.Module,
        method: Method = "guided_backprop",
        max_voxels: int | None = None,
        seed: int | None = 0,
        progress: bool = False,
        time_limit_s: float | None = None,
        method_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, method, method_options, **options)
        if max_voxels is not None and max_voxels < 1:
            raise ValueError(f"max_voxels must be at least 1, got {max_voxels}")
        if time_limit_s is not None and not time_limit_s > 0:
            raise ValueError(f"time_limit_s must be above 0, got {time_limit_s}")
        self.max_voxels, self.seed, self.progress, self.time_limit_s = max_voxels, seed, progress, time_limit_s

    def attribute(self, image: Image, score: Score) -> Tensor:
        region = score.target
        if not isinstance(region, Region) or region.mask.shape[2:] != image.shape[2:]:
            got = tuple(region.mask.shape) if isinstance(region, Region) else type(region).__name__
            raise ValueError(f"target must be a Region on the grid of the image {tuple(image.shape)}, got {got}")
        self.check(image, score)
        mask = region.mask[0, 0].as_subclass(Tensor).to(image)
        inside = mask.nonzero()
        # At random also where all are taken: what a time limit leaves is then spread over the region.
        voxels = inside[self._order(len(inside)).to(image.device)][: self.max_voxels]
        total, sums, done = torch.zeros_like(image[:, :1]), dict[str, float](), 0
        for part in self._parts(voxels, self.at_once(score), score):
            copies = image.detach().repeat(len(part), *[1] * (image.ndim - 1))
            weights = mask[part.unbind(dim=1)]
            values = self.maps(copies, score, EachVoxel(part, region.label, weights), sums)
            total += signed(values, self.sign).sum(dim=0, keepdim=True)
            done += len(part)
        # The sum over the region, of which those done are a sample.
        share = len(inside) / done / (float(mask.sum()) if region.mean else 1)
        score.notes |= {"voxels": len(inside), "planned": len(voxels), "evaluated": done}
        score.notes |= {key: value * share for key, value in sums.items()}
        return total.detach() * share

    def _order(self, count: int) -> Tensor:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return torch.randperm(count, generator=generator)

    def _parts(self, voxels: Tensor, at_once: int, score: Score) -> Iterator[Tensor]:
        start, done = time.monotonic(), 0
        with tqdm(total=len(voxels), desc=self.name, disable=not self.progress) as bar:
            for part in voxels.split(at_once):
                seconds = time.monotonic() - start
                if done and self.time_limit_s is not None and seconds >= self.time_limit_s:
                    score.notes["stopped_after_s"] = seconds
                    logger.warning("%s: stopped after %.1f s at %d of %d voxels", self.name, seconds, done, len(voxels))
                    return
                yield part
                done += len(part)
                bar.update(len(part))


@dataclass(frozen=True)
class EachVoxel:
    """The logit of a class in another voxel for each image: of copy ``i``, in voxel ``i % n``.

    Args:
        voxels: indices, ``(n, spatial_dims)``.
        label: the class.
        weights: of the voxels, ``(n,)``.
    """

    voxels: Tensor
    label: int
    weights: Tensor

    def __call__(self, logits: Logits) -> Tensor:
        copies = torch.arange(len(logits), device=logits.device)
        at = copies % len(self.voxels)
        chosen = class_logits(logits, self.label)[(copies, torch.zeros_like(copies), *self.voxels[at].unbind(dim=1))]
        return chosen * self.weights[at]
