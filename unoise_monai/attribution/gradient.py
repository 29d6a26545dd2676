"""Gradients of a target with respect to the image."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import ClassVar

import captum.attr
from torch import Tensor

from unoise_monai.attribution.base import CheckedAttributor, Score
from unoise_monai.types import Image

logger = logging.getLogger(__name__)

FAR_OFF = 0.1
"""The share of the difference of scores that a map's sum may miss without a warning in the log."""


class GradientAttributor(CheckedAttributor):
    """An attribution from gradients of the image, of several images at once where they fit."""

    copies_each: ClassVar[int] = 1
    """Copies of the volume that a pass of ``maps`` takes for each image, at the least."""

    def attribute(self, image: Image, score: Score) -> Tensor:
        values = super().attribute(image, score)
        delta, difference = score.notes.get("convergence_delta", 0.0), score.notes.get("score_difference", 0.0)
        if abs(delta) > FAR_OFF * abs(difference):
            logger.warning("%s: the map sums to %.3g more than the %.3g to explain", self.name, delta, difference)
        return values

    @abstractmethod
    def maps(self, images: Image, score: Score) -> Tensor:
        """The map of each image, with its sign, ``(n, C, *spatial)`` to the same; the images require gradients.

        The score is called with whole repeats of the images, in their order: its copy ``i`` is one of image ``i % n``,
        so that a score may give each image a target of its own.
        """


class Saliency(GradientAttributor):
    """The gradient of the target with respect to each voxel.

    Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013. One pass forward and back. Says what a
    small change of the voxel would do, and nothing where the network is saturated.
    """

    name = "saliency"

    def maps(self, images: Image, score: Score) -> Tensor:
        return captum.attr.Saliency(score).attribute(images, abs=False)


class InputXGradient(GradientAttributor):
    """Each voxel times its gradient: of a linear network, its contribution against an image of zeros.

    Shrikumar et al., "Not just a black box", 2016. One pass forward and back. A voxel of intensity 0 gets 0.
    """

    name = "input_x_gradient"
    contributes = True

    def maps(self, images: Image, score: Score) -> Tensor:
        return captum.attr.InputXGradient(score).attribute(images)


def note_convergence(score: Score, values: Tensor, delta: Tensor) -> None:
    """Note how far the sum of a map is from the difference of scores that it shall explain, the mean over images.

    Args:
        score: takes the notes ``convergence_delta``, and ``score_difference``, what to compare it with.
        values: the maps, ``(n, C, *spatial)``.
        delta: the sum of each map less that difference, ``(n,)``.
    """
    delta = delta.detach()
    score.notes["convergence_delta"] = float(delta.mean())
    score.notes["score_difference"] = float((values.detach().flatten(1).sum(dim=1) - delta).mean())
