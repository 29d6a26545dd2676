"""The mean of the maps of single voxels, such as those of a border."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.attribution.base import CheckedAttributor, Score, signed
from unoise_monai.attribution.cam import GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM
from unoise_monai.attribution.composed import GRADIENT_METHODS, ComposedAttributor, Method
from unoise_monai.attribution.targets import Region, class_logits
from unoise_monai.types import Image, Logits

logger = logging.getLogger(__name__)

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
