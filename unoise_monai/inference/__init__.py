"""Networks over whole volumes."""

from unoise_monai.inference.explain import Explainer, Explanation, postprocessing
from unoise_monai.inference.memory import AutocastInferer
from unoise_monai.inference.tiling import TiledInferer

__all__ = ["AutocastInferer", "Explainer", "Explanation", "TiledInferer", "postprocessing"]
