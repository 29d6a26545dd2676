"""Gradients of a target with respect to the image."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import captum.attr
from torch import Tensor

from unoise_monai.attribution.base import Attributor, Score
from unoise_monai.types import Image


class GradientAttributor(Attributor):
    """An attribution that Captum computes from gradients of the image."""

    @abstractmethod
    def captum(self, score: Score, image: Image) -> tuple[Any, dict[str, Any]]:
        """Captum's method over the score, and the options of its ``attribute``."""

    def attribute(self, image: Image, score: Score) -> Tensor:
        method, options = self.captum(score, image)
        return method.attribute(image, **options)


class Saliency(GradientAttributor):
    """The gradient of the target with respect to each voxel.

    Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013. One pass forward and back.
    """

    name = "saliency"

    def captum(self, score: Score, image: Image) -> tuple[Any, dict[str, Any]]:
        return captum.attr.Saliency(score), {"abs": False}


class InputXGradient(GradientAttributor):
    """Each voxel times its gradient: of a linear network, its contribution against an image of zeros.

    Shrikumar et al., "Not just a black box", 2016. One pass forward and back.
    """

    name = "input_x_gradient"

    def captum(self, score: Score, image: Image) -> tuple[Any, dict[str, Any]]:
        return captum.attr.InputXGradient(score), {}
