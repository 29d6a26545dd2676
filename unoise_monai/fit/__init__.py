"""Explain the network that a user already has: `load` it, `fit` a noise model to it."""

from unoise_monai.fit.checking import UnfitModel
from unoise_monai.fit.fitting import Fitted, fit
from unoise_monai.fit.loading import TrainedModel, load, wrap
from unoise_monai.fit.models import BundleModel, DescribedModel, Description, Model, Program
from unoise_monai.fit.nnunet import NnUNetInferer, NnUNetModel, NnUNetPreprocessd

__all__ = [
    "BundleModel",
    "DescribedModel",
    "Description",
    "Fitted",
    "Model",
    "NnUNetInferer",
    "NnUNetModel",
    "NnUNetPreprocessd",
    "Program",
    "TrainedModel",
    "UnfitModel",
    "fit",
    "load",
    "wrap",
]
