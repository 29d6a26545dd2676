"""One volume in; its segmentation and importance out, on the input file's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, EnsureTyped, Invertd, MapTransform
from monai.utils import convert_to_tensor

from unoise_monai.data.reading import case_name
from unoise_monai.data.task import SegmentationTask
from unoise_monai.data.transforms import preprocessing
from unoise_monai.inference.tiling import TiledInferer
from unoise_monai.networks.modes import evaluating
from unoise_monai.unoise import ExplainedSegmenter


class SplitExplanationd(MapTransform):
    """From an `ExplainedSegmenter`'s prediction to ``importance`` and ``seg``.

    Shape:
        ``pred`` ``(K + 1, *spatial)`` to ``importance`` ``(1, *spatial)`` float32 in [0, 1] and ``seg``
        ``(1, *spatial)`` class indices. ``pred`` is dropped: at a scan's full size it is large.
    """

    def __init__(self, key: str = "pred") -> None:
        super().__init__([key])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        pred: MetaTensor = d.pop(self.keys[0])
        logits = pred[:-1]
        # The interpolation back to the file's grid rounds: no importance leaves [0, 1].
        d["importance"] = pred[-1:].clamp(0.0, 1.0)
        binary = logits.shape[0] == 1
        d["seg"] = (logits > 0).to(torch.uint8) if binary else logits.argmax(dim=0, keepdim=True).to(torch.uint8)
        for key in ("importance", "seg"):
            # The file's own affine to the bit, not the one that inverting every step in turn rounded.
            d[key].affine = pred.meta["original_affine"]
        return d


def postprocessing(preprocess: Compose) -> Compose:
    """Undo the preprocessing of a prediction: logits and importance go back to the input file's grid.

    Logits are interpolated, then decided: an outline from interpolated class indices would be ragged.

    Args:
        preprocess: the chain that made the network's input.
    """
    return Compose(
        [
            # A scan at its full size, with every class, has its place in the RAM, not on the GPU.
            EnsureTyped("pred", device=torch.device("cpu")),
            Invertd("pred", preprocess, orig_keys="image", nearest_interp=False, to_tensor=True),
            SplitExplanationd("pred"),
        ]
    )


class Explanation(NamedTuple):
    """Where a segmentation network looked in one volume; both maps lie on the input file's grid."""

    case: str
    importance: MetaTensor
    """Importance in [0, 1], ``(1, X, Y, Z)`` float32, with the file's affine."""
    segmentation: MetaTensor
    """Class indices, ``(1, X, Y, Z)`` uint8, with the file's affine."""


class Explainer:
    """Explains the segmentation of volumes, one file at a time.

    Args:
        segmenter: the trained network and its noise model; it runs on the device that it is on, in evaluation mode, and
            comes back in the mode that it had.
        task: how volumes are read; the same definition that the networks were trained with.
        inferer: how the network runs over the volume; exact tiles in the fastest precision by default.
    """

    def __init__(self, segmenter: ExplainedSegmenter, task: SegmentationTask, inferer: Inferer | None = None) -> None:
        self.segmenter = segmenter
        self.inferer = TiledInferer() if inferer is None else inferer
        self.preprocess = preprocessing(task, with_label=False)
        self.postprocess = postprocessing(self.preprocess)

    def __call__(self, image: str | Path) -> Explanation:
        """Explain the segmentation of one file.

        Raises:
            CaseError: when the file is missing, unreadable, not three-dimensional or holds NaN or infinite voxels.
        """
        item = self.preprocess({"image": str(image), "case": case_name(image)})
        restored = self.postprocess({**item, "pred": self.predict(item["image"])})
        return Explanation(restored["case"], restored["importance"], restored["seg"])

    def predict(self, image: MetaTensor) -> MetaTensor:
        """The network's output ``(K + 1, *spatial)``, on its device, for a preprocessed image ``(C, *spatial)``."""
        device = next(self.segmenter.parameters()).device
        with evaluating(self.segmenter):
            pred = self.inferer(image[None].to(device), self.segmenter)
        return MetaTensor(convert_to_tensor(pred[0]), meta=image.meta)
