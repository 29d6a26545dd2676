"""Which voxels a 3D medical segmentation network relies on: learned noise masks (U-Noise) as MONAI bundles."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unoise_monai.bundle import load_bundle
    from unoise_monai.fit import fit, load, wrap
    from unoise_monai.unoise import ExplainedSegmenter, UNoise

__all__ = ["ExplainedSegmenter", "UNoise", "fit", "load", "load_bundle", "wrap"]

# Imported when first asked for (PEP 562): `unoise --help` and completion in a shell should not wait for PyTorch.
_MODULES = {
    "ExplainedSegmenter": "unoise_monai.unoise",
    "UNoise": "unoise_monai.unoise",
    "fit": "unoise_monai.fit",
    "load": "unoise_monai.fit",
    "load_bundle": "unoise_monai.bundle",
    "wrap": "unoise_monai.fit",
}

# Hidden from type checkers, which would take any name for one of the package's.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(_MODULES[name])
        # `fit` is a folder that can be called.
        value = globals()[name] = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
