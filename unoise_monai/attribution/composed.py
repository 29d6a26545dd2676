"""Methods made of other methods: noise tunnels, and the mean of voxels' maps."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import METHODS, Attributor, Score, register
from unoise_monai.attribution.gradient import GradientAttributor
from unoise_monai.attribution.layer_methods import CAM, GuidedGradCAM
from unoise_monai.attribution.targets import Region, Target, class_logits
from unoise_monai.checks import check_choice
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.types import Image, Logits

Method: TypeAlias = str | type[Attributor] | Attributor
"""A method: its name, its class, or one that was made over the same network."""


class ComposedAttributor(Attributor):
    """The mean, or the like, of maps of a gradient method.

    ``method_options`` are those of a method that is not made yet, such as ``{"substitute": True}``; other options are
    by default those of the method. A ValueError where ``method`` is unknown, not one of ``takes`` or made over another
    network, or ``method_options`` come with one that is made; in the call, where the method refuses the network.
    """

    takes: ClassVar[tuple[type[Attributor], ...]] = (GradientAttributor,)
    """The kinds of methods that it can be made of."""

    def __init__(
        self, network: nn.Module, method: Method, method_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        if isinstance(method, self.takes):
            if method.network is not network:
                raise ValueError(f"method must be made over the network itself, got {method.name} over another")
            if method_options:
                raise ValueError(f"method_options must be None where method is made, got {dict(method_options)}")
            self.inner: Attributor = method
        else:
            # A CAM takes its sign on the layer's own grid, before anything else can.
            self.inner = self._class_of(method)(network, **{"sign": options.get("sign"), **(method_options or {})})
        volume = self.inner.volume
        if options.get("sign") is None:
            options["sign"] = self.inner.sign
        super().__init__(network, **({"memory_gb": volume.memory_gb, "precision": volume.precision} | options))
        self.volume.clips = self.inner.clips
        self.contributes = self.inner.contributes

    def at_once(self, score: Score) -> int:
        """How many images the method takes in a pass; methods that keep a layer's features take one."""
        return max(1, score.copies // self.inner.copies_each) if isinstance(self.inner, GradientAttributor) else 1

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return self.inner.check(image, volume)

    def inner_maps(self, images: Image, score: Score, target: Target, sums: dict[str, float]) -> Tensor:
        """The method's signed maps of n images; the numbers that it notes are added to ``sums``, times n."""
        part = Score(score.volume, target, score.copies)
        part.notes |= {key: value for key, value in score.notes.items() if not isinstance(value, (int, float))}
        maps = self.inner.maps(images.requires_grad_(), part).detach()
        for key, value in part.notes.items():
            if isinstance(value, (int, float)):
                sums[key] = sums.get(key, 0.0) + len(images) * value
            else:
                score.notes[key] = value
        return maps

    @classmethod
    def methods(cls) -> dict[str, type[Attributor]]:
        """Those that it can be made of, by name."""
        return {name: method for name, method in METHODS.items() if issubclass(method, cls.takes)}

    def _class_of(self, method: Method) -> type[Attributor]:
        known = self.methods()
        if isinstance(method, str):
            check_choice("method", method, tuple(known))
            return known[method]
        if not (isinstance(method, type) and issubclass(method, self.takes)):
            raise ValueError(f"method must be {', '.join(known)}, by its name or class, got {method!r}")
        return method


class NoisyMaps(ComposedAttributor):
    """A statistic of a gradient method's maps of the image with Gaussian noise on it.

    The noise follows from the seed, however many samples go through at once: with Captum's ``NoiseTunnel`` it depends
    on the memory. The notes hold the means of what the method notes of each sample.

    A map costs ``samples`` times what the method costs. ``sigma`` is in units of normalised intensity; Smilkov et al.
    take 10% to 20% of the image's range. A ValueError where ``samples`` is below 1, or ``sigma`` negative or not
    finite; see also `ComposedAttributor`.
    """

    squares: ClassVar[bool] = False
    """Whether the map is of squares of the method's values, which are no contributions."""

    def __init__(
        self,
        network: nn.Module,
        method: Method = "saliency",
        samples: int = 25,
        sigma: float = 0.15,
        seed: int | None = 0,
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, method, **options)
        base.check_noise(samples, sigma)
        self.samples, self.sigma, self.seed, self.progress = samples, sigma, seed, progress
        self.contributes = self.contributes and not self.squares

    @abstractmethod
    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The map, of the mean and the variance of the samples' maps."""

    def maps(self, images: Image, score: Score) -> Tensor:
        plain = images.detach()
        mean, squares = torch.zeros_like(plain), torch.zeros_like(plain)
        sums, done = dict[str, float](), 0
        with base.seeded(self.seed, plain.device):
            for batch in base.batches(self.samples, self.at_once(score), self.name, {}, self.progress):
                noisy = torch.cat([plain + self.sigma * torch.randn_like(plain) for _ in batch])
                # Welford's sums: the difference of two large squares would lose the variance to rounding.
                for values in self.inner_maps(noisy, score, score.target, sums).split(1):
                    done += 1
                    change = values - mean
                    mean += change / done
                    squares += change * (values - mean)
        score.notes |= {"samples": done, **{key: value / done for key, value in sums.items()}}
        return self.statistic(mean, squares / done)


@register
class SmoothGrad(NoisyMaps):
    """The mean of the maps of noisy copies of the image. The sign is taken of the mean.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
    """

    name = "smooth_grad"

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return mean


@register
class SmoothGradSquared(NoisyMaps):
    """The mean square of the maps of noisy copies of the image: voxels whose gradients cancel out count too.

    Hooker et al., "A benchmark for interpretability methods in deep neural networks", 2019. Its values have no sign.
    """

    name = "smooth_grad_squared"
    squares = True

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return variance + mean.square()


@register
class VarGrad(NoisyMaps):
    """The variance of the maps over noisy copies of the image: where the gradient depends on small changes of it.

    Adebayo et al., "Local explanation methods for deep neural networks lack sensitivity to parameter values", 2018.
    Its values have no sign, and are 0 of a linear network.
    """

    name = "var_grad"
    squares = True

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return variance


@register
class VoxelwiseMean(ComposedAttributor):
    """The mean, over the voxels of a region, of a gradient or CAM method's maps of each voxel's logit.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images", section IV, where the region
    is the segment's border: ``VoxelwiseMean(network)(image, border_mean(logits, label))``. Costs what the method costs
    for every voxel, thousands of times a volume. For methods that are linear in the target (saliency, input times
    gradient, integrated gradients, DeepLIFT) signed maps average to the map of the region itself: ask for that, in one
    go. Guided backpropagation, deconvolution, magnitudes and Grad-CAM's ReLU are not linear.

    Of a region of more than ``max_voxels`` that many are drawn; None takes all. Called with a `Region` that sums, it
    gives the sum of the maps in place of their mean. Where the mask has weights, each voxel's logit counts with its
    weight. The notes hold how many ``voxels`` the region has, how many were ``planned`` and ``evaluated``, and the mean
    or sum of what the method notes. A ValueError where ``max_voxels`` is below 1 or ``time_limit_s`` not above 0; in
    the call, where the target is no `Region` on the image's grid; see also `ComposedAttributor`.
    """

    name = "voxelwise_mean"
    needs = ("region",)
    takes = (GradientAttributor, CAM, GuidedGradCAM)

    def __init__(
        self,
        network: nn.Module,
        method: Method = "guided_backprop",
        max_voxels: int | None = None,
        seed: int | None = 0,
        progress: bool = False,
        time_limit_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, method, **options)
        if max_voxels is not None:
            base.check_at_least("max_voxels", max_voxels, 1)
        base.check_time_limit(time_limit_s)
        self.max_voxels, self.seed, self.progress, self.time_limit_s = max_voxels, seed, progress, time_limit_s

    def maps(self, images: Image, score: Score) -> Tensor:
        region = score.target
        if not isinstance(region, Region) or region.mask.shape[2:] != images.shape[2:]:
            got = tuple(region.mask.shape) if isinstance(region, Region) else type(region).__name__
            raise ValueError(f"target must be a Region on the grid of the image {tuple(images.shape)}, got {got}")
        mask = region.mask[0, 0].as_subclass(Tensor).to(images)
        inside = mask.nonzero()
        # In random order, so that a time limit leaves voxels all over the region.
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(inside), generator=generator)
        voxels = inside[order.to(images.device)][: self.max_voxels]
        total, sums, done = torch.zeros_like(images[:, :1]), dict[str, float](), 0
        at_once = self.at_once(score)
        for batch in base.batches(len(voxels), at_once, self.name, score.notes, self.progress, self.time_limit_s):
            part = voxels[batch.start : batch.stop]
            copies = images.detach().repeat(len(part), *[1] * (images.ndim - 1))
            values = self.inner_maps(copies, score, each_voxel(part, region.label, mask[part.unbind(dim=1)]), sums)
            total += base.signed(values, self.sign).sum(dim=0, keepdim=True)
            done += len(part)
        # The sum over the region, of which those done are a sample.
        share = len(inside) / done / (float(mask.sum()) if region.mean else 1)
        score.notes |= {"voxels": len(inside), **{key: value * share for key, value in sums.items()}}
        return total.detach() * share


def each_voxel(voxels: Tensor, label: int, weights: Tensor) -> Target:
    """The weighted logit of a class in one voxel for each image: of copy ``i``, in voxel ``i % n``.

    ``voxels`` are indices ``(n, spatial_dims)``, ``weights`` ``(n,)``.
    """

    def target(logits: Logits) -> Tensor:
        copies = torch.arange(len(logits), device=logits.device)
        at = copies % len(voxels)
        chosen = class_logits(logits, label)[(copies, torch.zeros_like(copies), *voxels[at].unbind(dim=1))]
        return chosen * weights[at]

    return target
