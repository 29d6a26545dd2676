"""Explain the network that a user already has: `load` it, `fit` a noise model to it.

The module can be called as `fit`: ``unoise_monai.fit`` is both.
"""

import sys
from types import ModuleType
from typing import Any

from unoise_monai.fit.checking import UnfitModel
from unoise_monai.fit.fitting import Fitted, fit
from unoise_monai.fit.in_memory import fit_network
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
    "fit_network",
    "load",
    "wrap",
]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return fit(*args, **options)


# An import of the folder would put it in the place of a function of its name, whenever that is, and MONAI looks up
# what configurations name, such as `unoise_monai.fit.Program`, in the folder.
sys.modules[__name__].__class__ = _Callable
