"""A picture of every case's importance beside its NIfTI files."""

from __future__ import annotations

import logging
import os

import numpy as np
from ignite.engine import Engine, Events
from monai.transforms import LoadImage

from unoise_monai.checks import check_choice
from unoise_monai.handlers.cases import CaseFolders, item_volume, label_voxels, output_items, to_numpy
from unoise_monai.render.canonical import to_canonical
from unoise_monai.render.overlay import check_count, overlay_slices
from unoise_monai.render.panels import check_window
from unoise_monai.render.png import save_png

logger = logging.getLogger(__name__)


class OverlaySaver:
    """Write ``OUTPUT/<case>/<case>_overlay.png``, importance over the patient's scan: an ignite handler.

    Runs after each iteration of an evaluator with ``decollate=True`` whose output holds the maps on the input
    file's grid. The scan is read again from its file, so that the picture shows the intensities that the clinic
    knows, not the normalised ones; of several channels the first. ``overlay_slices`` draws, the same however the
    file is stored.

    Args:
        output_dir: folder for the cases' folders.
        axis: 0 sagittal, 1 coronal, 2 axial.
        count: how many slices.
        window: intensities that turn black and white (HU in CT); None for the scan's 1st and 99th percentile.
        importance_key: where the engine's output holds the importance, ``(1, X, Y, Z)`` in [0, 1].
        segmentation_key: where it holds the segmentation, ``(1, X, Y, Z)`` class indices; None for no outline.

    Raises:
        ValueError: when ``axis`` is not 0, 1 or 2, ``count`` is below 1, or ``window`` is not in rising order.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        axis: int = 2,
        count: int = 6,
        window: tuple[float, float] | None = None,
        importance_key: str = "importance",
        segmentation_key: str | None = "seg",
    ) -> None:
        check_choice("axis", axis, (0, 1, 2))
        check_count(count)
        self.folders = CaseFolders(output_dir)
        self.axis = axis
        self.count = count
        self.window = None if window is None else check_window(window)
        self.importance_key = importance_key
        self.segmentation_key = segmentation_key
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def attach(self, engine: Engine) -> None:
        """Run after every iteration of ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in output_items(engine):
            importance = item_volume(item, self.importance_key)
            name, folder, source = self.folders.claim(importance)
            values, spacing_mm = to_canonical(*to_numpy(importance))
            image, _ = to_canonical(*to_numpy(self.load(source)))
            labels = None
            if self.segmentation_key is not None:
                segmentation = item_volume(item, self.segmentation_key)
                affine = np.asarray(segmentation.affine.cpu())  # type: ignore[attr-defined]
                labels, _ = to_canonical(label_voxels(segmentation, self.segmentation_key), affine)
            rgb = overlay_slices(image, values, spacing_mm, self.axis, self.count, labels, self.window)
            save_png(rgb, folder / f"{name}_overlay.png")
            logger.info("%s: wrote overlay", name)
