"""Random changes of an image, the same for every item and every map that is scored with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unoise_monai.types import Image


@dataclass(frozen=True)
class GaussianPerturbation:
    """Gaussian noise on every voxel, or in place of what a random box holds.

    Args:
        items: of the batch.
        sigma: in units of normalised intensity.
        generator: draws, whatever the device of the images.
        box: None, or the voxels a side of the box; cut to shorter sides of the volume.

    Shape:
        called with images ``(items * copies, C, *spatial)``, the copies of an item in a row as Captum has them, to
        the perturbation ``I`` and ``images - I``.

    Raises:
        ValueError: when ``sigma`` is not above 0, or ``box`` below 1.
    """

    items: int
    sigma: float
    generator: torch.Generator
    box: int | None = None

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        if self.box is not None and self.box < 1:
            raise ValueError(f"box must be at least 1, got {self.box}")

    def __call__(self, images: Image) -> tuple[Tensor, Image]:
        if self.box is None:
            perturbation = draw_copies(images, self.items, self.noise)
        else:
            noise, inside = draw_copies(images, self.items, self.noise_in_box).unbind(1)
            perturbation = torch.where(inside > 0, images - noise, 0.0)
        return perturbation, images - perturbation

    def noise(self, shape: torch.Size) -> Tensor:
        return self.sigma * torch.randn(shape, generator=self.generator, device=self.generator.device)

    def noise_in_box(self, shape: torch.Size) -> Tensor:
        """Noise, and 1 where the box is, ``(2, C, *spatial)``."""
        noise = self.noise(shape)
        inside = torch.zeros_like(noise)
        place = [slice(None)]
        for side in shape[1:]:
            length = min(self.box or side, side)
            first = torch.randint(side - length + 1, (), generator=self.generator, device=self.generator.device)
            place.append(slice(int(first), int(first) + length))
        inside[tuple(place)] = 1
        return torch.stack([noise, inside])


@dataclass(frozen=True)
class UniformPerturbation:
    """Noise drawn evenly from ``[-radius, radius]``, the ball of the maximum norm, on every voxel.

    Args:
        items: of the batch.
        radius: in units of normalised intensity.
        generator: draws, whatever the device of the images.

    Shape:
        called with images ``(items * copies, C, *spatial)`` to perturbed ones.

    Raises:
        ValueError: when ``radius`` is not above 0.
    """

    items: int
    radius: float
    generator: torch.Generator

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)

    def __call__(self, images: Image) -> Image:
        return images + draw_copies(images, self.items, self.noise)

    def noise(self, shape: torch.Size) -> Tensor:
        return self.radius * (2 * torch.rand(shape, generator=self.generator, device=self.generator.device) - 1)


def draw_copies(images: Image, items: int, draw: Callable[[torch.Size], Tensor]) -> Tensor:
    """A draw for each copy of an item, the same for every item: one by one, so that no pass size changes them."""
    drawn = torch.stack([draw(images.shape[1:]) for _ in range(len(images) // items)]).to(images.device)
    return drawn.repeat(items, *[1] * (drawn.ndim - 1))


def check_positive(name: str, value: float) -> None:
    """Refuse what is no distance.

    Raises:
        ValueError: when ``value`` is not finite and above 0.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
