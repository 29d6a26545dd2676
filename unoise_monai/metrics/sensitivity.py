"""How much a map changes when the image hardly does."""

from __future__ import annotations

from collections.abc import Callable

import captum.metrics
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.targets import Target
from unoise_monai.checks import check_finite
from unoise_monai.metrics.infidelity import checked_map
from unoise_monai.metrics.perturbations import UniformPerturbation
from unoise_monai.types import Image, VoxelMap


def max_sensitivity(
    attributor: Callable[[Image, Target], VoxelMap],
    image: Image,
    target: Target,
    radius: float,
    samples: int = 10,
    *,
    generator: torch.Generator,
) -> Tensor:
    """The largest change of the map over random small changes of the image, relative to the map, by Captum; ``(B,)``.

    Yeh et al., "On the (in)fidelity and sensitivity of explanations", 2019, Definition 3.1; Fazel et al.,
    "Interpretability of U-Net model in the segmentation of medical images", Eq. 4: ``max |map(y) - map(x)|`` over ``y``
    with ``|y - x| <= radius``, divided by ``|map(x)|``, so that maps of any unit compare. The norm of the maps is the
    Euclidean one, that of the images the maximum, whose ball the ``y`` are drawn from evenly: the maximum over samples
    is a lower bound of the one over the ball. 0 is a map that does not change, and so is a constant one; of a map of
    zeros there is nothing to be relative to: NaN.

    The target stays the one that it is, made from the unperturbed image. A method that draws from the global random
    state adds its own noise to the score; give it a seed.

    Args:
        attributor: from an image and a target to a map. It is called once more than ``samples``, with images that lie
            where ``image`` does.
        image: ``(B, C, *spatial)``.
        target: what the map explains.
        radius: in units of normalised intensity.
        samples: perturbations, the same ones for each item.
        generator: draws them, so one generator state means the same perturbations for every method.

    Raises:
        ValueError: when ``radius`` is not above 0, ``samples`` below 1, or a map not one channel on the image's grid;
            when image or map hold NaN or infinite values.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    perturb = UniformPerturbation(len(image), radius, generator)
    check_finite(image, "image")
    nothing: list[Tensor] = []

    # Captum hands the image itself over in a tuple and wants its map in one, and calls without gradients, which a
    # method may need.
    def explain(images: Image | tuple[Image]) -> VoxelMap | tuple[VoxelMap]:
        if isinstance(images, tuple):
            original = plain_map(images[0])
            nothing.append(~original.flatten(1).any(dim=1))
            return (original,)
        return plain_map(images)

    def plain_map(images: Image) -> VoxelMap:
        placed = MetaTensor(images).copy_meta_from(image) if isinstance(image, MetaTensor) else images
        with torch.enable_grad():
            return checked_map(attributor(placed, target), images, "the attributor's map").contiguous()

    found = captum.metrics.sensitivity_max(
        explain,
        image.detach().as_subclass(Tensor),
        perturb,
        n_perturb_samples=samples,
        max_examples_per_batch=len(image),
    )
    return found.masked_fill(nothing[0], torch.nan)
