"""Images that a network's answer is compared with: no choice is neutral."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from unoise_monai.checks import check_choice, check_finite
from unoise_monai.types import Image

BASELINES = ("zero", "mean", "minimum", "blurred", "noise")

Baseline: TypeAlias = str | float | Tensor
"""One of `BASELINES`, a number, or an image that expands to ``(1, C, *spatial)``."""


def baseline(image: Image, kind: Baseline, sigma: float = 5.0, seed: int | None = 0) -> Image:
    """An image that shows nothing, of the shape of ``image``; intensities are normalised ones.

    - ``"zero"``: 0, the mean of images that are normalised to zero mean.
    - ``"mean"``, ``"minimum"``: of each item's and channel's own intensities. The minimum is air in CT and MR.
    - ``"blurred"``: the Gaussian mean around each voxel, of the voxels inside the volume; coarse structure stays.
    - ``"noise"``: Gaussian, of each item's and channel's own mean and standard deviation.
    - a number, or an image of your own.

    Args:
        image: ``(B, C, *spatial)``.
        kind: as above.
        sigma: of the blur, in voxels.
        seed: of the noise, the same for all items and on all devices; None draws from the global random state.

    Raises:
        ValueError: when ``kind`` is unknown, holds NaN or infinite values or does not expand to the image, or ``sigma``
            is not a finite number above 0.
    """
    check_baseline(kind)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a finite number above 0, got {sigma}")
    image = image.detach().as_subclass(Tensor)
    axes = tuple(range(2, image.ndim))
    if isinstance(kind, Tensor):
        return _expanded(kind, image)
    if not isinstance(kind, str):
        return torch.full_like(image, kind)
    if kind == "mean":
        return image.mean(dim=axes, keepdim=True).expand_as(image).clone()
    if kind == "minimum":
        return image.amin(dim=axes, keepdim=True).expand_as(image).clone()
    if kind == "blurred":
        # MONAI's filter alone would mix in the zeros outside the volume.
        gauss = GaussianFilter(len(axes), sigma).to(image.device)
        return (gauss(image) / gauss(torch.ones_like(image[:1, :1]))).detach()
    if kind == "noise":
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        noise = torch.randn(image.shape[1:], generator=generator).to(image)
        spread = image.std(dim=axes, keepdim=True, correction=0)
        return image.mean(dim=axes, keepdim=True) + spread * noise
    return torch.zeros_like(image)


def baselines(image: Image, kinds: Sequence[Baseline], seed: int | None = 0) -> list[Image]:
    """Several of them, each of the shape of ``image``; every ``"noise"`` among them is another."""
    return [baseline(image, kind, seed=None if seed is None else seed + at) for at, kind in enumerate(kinds)]


def check_baseline(kind: Baseline, name: str = "baseline") -> None:
    """Refuse what is no baseline.

    Raises:
        ValueError: when it is neither one of `BASELINES` nor of finite values.
    """
    if isinstance(kind, str):
        check_choice(name, kind, BASELINES)
    else:
        check_finite(torch.as_tensor(kind), name)


def check_baselines(kinds: Sequence[Baseline] | Tensor) -> tuple[Baseline, ...]:
    """The baselines of a distribution, one or more.

    Raises:
        ValueError: when there is none, they are one name, or one of them is no baseline.
    """
    if isinstance(kinds, str) or not len(kinds):
        raise ValueError(f"baselines must be one or more of {', '.join(map(repr, BASELINES))}, got {kinds!r}")
    # Of a stack of images (b, C, *spatial), each is one.
    images = kinds.unsqueeze(1) if isinstance(kinds, Tensor) else kinds
    for kind in images:
        check_baseline(kind)
    return tuple(images)


def _expanded(kind: Tensor, image: Image) -> Image:
    try:
        return kind.detach().as_subclass(Tensor).to(image).expand_as(image).clone()
    except RuntimeError as error:
        got = tuple(kind.shape)
        raise ValueError(f"baseline must expand to the image {tuple(image.shape)}, got {got}") from error
