"""The table of pictures that can be drawn of a case."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from unoise_monai.render.canvas import Rgb, Spacing, Volume, save_png
from unoise_monai.render.mip import mips
from unoise_monai.render.rotation import rotating_mip, save_animation
from unoise_monai.render.slices import montage


class Picture(NamedTuple):
    """One kind of picture."""

    draw: Callable[..., Rgb]
    """Called with ``(image, spacing_mm, importance, segmentation, **options)``, see ``mips``."""
    save: Callable[[Rgb, str | os.PathLike[str]], None]
    suffix: str
    """Of its file."""
    options: tuple[str, ...]
    """Names of the options that ``draw`` takes and a bundle may set."""

    def chosen(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options of all pictures that this one takes."""
        return {name: options[name] for name in self.options if name in options}


def rotation(
    image: Volume, spacing_mm: Spacing, importance: Volume | None = None, segmentation: Any = None, **options: Any
) -> Rgb:
    """The frames of ``rotating_mip``, which draws no outlines."""
    return rotating_mip(image, spacing_mm, importance=importance, **options)


LOOK = ("window", "style", "threshold", "label")
PICTURES: Mapping[str, Picture] = MappingProxyType(
    {
        "montage": Picture(montage, save_png, ".png", (*LOOK, "axis", "count", "crop_mm")),
        "mip": Picture(mips, save_png, ".png", (*LOOK, "slab_mm")),
        "rotation": Picture(rotation, save_animation, ".gif", LOOK),
    }
)
"""By name, as the file's name has it: ``<case>_<name><suffix>``."""
