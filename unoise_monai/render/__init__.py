"""Pictures of importance maps: pure functions, array in, image out."""

from unoise_monai.render.canvas import display_scale, save_png, scale_map, to_canonical
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.mip import mips, rotating_mip, save_animation, slab_mips
from unoise_monai.render.slices import DECILES, PAPER_THRESHOLDS, decile_pictures, layer_grid, montage

__all__ = [
    "DECILES",
    "PAPER_THRESHOLDS",
    "decile_pictures",
    "display_scale",
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
