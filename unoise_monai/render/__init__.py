"""Pictures of importance maps: pure functions, array in, image out."""

from unoise_monai.render.animation import save_animation
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.deciles import DECILES, PAPER_THRESHOLDS, decile_pictures
from unoise_monai.render.layers import layer_grid
from unoise_monai.render.mip import mips, slab_mips
from unoise_monai.render.montage import montage
from unoise_monai.render.overlay import scale_map
from unoise_monai.render.png import save_png
from unoise_monai.render.rotation import rotating_mip

__all__ = [
    "DECILES",
    "PAPER_THRESHOLDS",
    "decile_pictures",
    "layer_grid",
    "mips",
    "montage",
    "plot_visibility",
    "rotating_mip",
    "save_animation",
    "save_png",
    "scale_map",
    "slab_mips",
    "to_canonical",
]
