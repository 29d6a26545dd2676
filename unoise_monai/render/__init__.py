"""Pictures of importance maps: pure functions, array in, image out."""

from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.deciles import PAPER_THRESHOLDS, decile_pictures
from unoise_monai.render.overlay import overlay_slices
from unoise_monai.render.png import save_png

__all__ = ["PAPER_THRESHOLDS", "decile_pictures", "overlay_slices", "plot_visibility", "save_png", "to_canonical"]
