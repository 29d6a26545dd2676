"""One volume in; its segmentation and importance out, on the input file's own grid."""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, EnsureTyped, Invertd, MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor

from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.reading import case_name
from unoise_monai.inference.tiling import TiledInferer
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import VoxelMap
from unoise_monai.unoise import ExplainedSegmenter


class SplitExplanationd(MapTransform):
    """From an `ExplainedSegmenter`'s prediction to ``importance`` and ``seg``.

    Shape:
        ``pred`` ``(K + 1, *spatial)`` to ``importance`` ``(1, *spatial)`` float32 in [0, 1] and ``seg``
        ``(1, *spatial)`` class indices. ``pred`` is dropped: at a scan's full size it is large.

    Args:
        key: of the prediction.
        decide: a dictionary chain that makes class indices or one channel a class from the logits under ``key``; by
            default the largest logit, or one logit above 0.
    """

    def __init__(self, key: str = "pred", decide: Callable[[Mapping[Any, Any]], Any] | None = None) -> None:
        super().__init__([key])
        self.decide = decide

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        pred: MetaTensor = d.pop(self.keys[0])
        logits = pred[:-1]
        # The interpolation back to the file's grid rounds: no importance leaves [0, 1].
        d["importance"] = pred[-1:].clamp(0.0, 1.0)
        if self.decide is not None:
            logits = self.decide({**d, self.keys[0]: logits})[self.keys[0]]
        # Decided already, or one logit.
        single = logits.shape[0] == 1
        d["seg"] = (logits > 0 if self.decide is None else logits) if single else logits.argmax(dim=0, keepdim=True)
        d["seg"] = d["seg"].to(torch.uint8)
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

    def save(self, folder: str | Path) -> None:
        """Write ``<case>_importance.nii.gz`` and ``<case>_seg.nii.gz`` to a folder, on the grid of the input file.

        Raises:
            ValueError: see `write_nifti`.
        """
        for name, volume, description in (
            ("importance", self.importance, "U-Noise importance, 0 to 1"),
            ("seg", self.segmentation, "segmentation, class indices"),
        ):
            path = Path(folder) / f"{self.case}_{name}.nii.gz"
            source = volume.meta["filename_or_obj"]
            write_nifti(path, volume[0].numpy(), volume.affine.numpy(), description, source)


class Explainer:
    """Explains the segmentation of volumes, one file at a time: a bundle's pipeline without its savers.

    Args:
        network: the trained network and its noise model; it runs on the device that it is on, in evaluation mode, and
            comes back in the mode that it had.
        preprocess: a dictionary chain with the key ``image``, from a file to the network's input, invertible by its
            own transforms; the same that the networks were trained with.
        inferer: how the network runs over the volume; exact tiles in the fastest precision by default.
        postprocess: from ``pred`` to ``importance`` and ``seg`` on the file's grid; `postprocessing` by default.
    """

    def __init__(
        self,
        network: ExplainedSegmenter,
        preprocess: Compose,
        inferer: Inferer | None = None,
        postprocess: Callable[[Mapping[Any, Any]], Any] | None = None,
    ) -> None:
        self.network = network
        self.inferer = TiledInferer() if inferer is None else inferer
        self.preprocess = preprocess
        self.postprocess = postprocessing(preprocess) if postprocess is None else postprocess

    def __call__(self, image: str | Path) -> Explanation:
        """Explain the segmentation of one file, or of a folder with one DICOM series.

        Raises:
            CaseError: when the file is missing, unreadable, not three-dimensional or holds NaN or infinite voxels.
        """
        item = self.preprocess({"image": str(image), "case": case_name(image)})
        restored = self.postprocess({**item, "pred": self.predict(item["image"])})
        return Explanation(restored["case"], restored["importance"], restored["seg"])

    explain = __call__

    def predict(self, image: MetaTensor) -> MetaTensor:
        """The network's output ``(K + 1, *spatial)``, on its device, for a preprocessed image ``(C, *spatial)``."""
        device = next(self.network.parameters()).device
        with evaluating(self.network):
            pred = self.inferer(image[None].to(device), self.network)
        return MetaTensor(convert_to_tensor(pred[0]), meta=image.meta)

    def on_file_grid(self, values: VoxelMap, item: Mapping[Any, Any]) -> MetaTensor:
        """A map ``(1, 1, *spatial)`` of a preprocessed item, interpolated to the grid of its file, ``(1, X, Y, Z)``."""
        plain = MetaTensor(values[0].detach().as_subclass(Tensor).cpu(), meta=item["image"].meta)
        undo = Invertd("map", self.preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)
        restored: MetaTensor = undo({**item, "map": plain})["map"]
        # The file's own affine to the bit, not the one that inverting every step in turn rounded.
        restored.affine = restored.meta["original_affine"]
        return restored
