"""One case as a network sees it, and the way back to its file: what the scripts here share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, LoadImage, ResampleToMatch
from torch import Tensor

from unoise_monai.data import SegmentationTask, choose_cases, find_images, list_cases, preprocessing
from unoise_monai.data.finding import Case
from unoise_monai.types import Image, LabelMap, VoxelMap


def find_cases(
    path: Path, split_file: Path | None = None, part: str | None = None, choice: int | Sequence[str] | None = None
) -> list[Case]:
    """The labelled cases of a Decathlon folder, else every volume that is found; see `choose_cases`."""
    cases = list_cases(path) if (path / "dataset.json").is_file() else find_images(path)
    return choose_cases(cases, split_file, part, choice)


@dataclass(frozen=True)
class CaseVolumes:
    """One case, read and normalised."""

    name: str
    source: Path
    image: Image
    """Normalised, ``(1, C, *spatial)``, a MetaTensor."""
    label: LabelMap | None
    """Class indices, ``(1, 1, *spatial)``, where the case has a label."""
    item: dict[str, Any]
    """What the preprocessing made, which knows how to undo itself."""
    preprocess: Any

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size of the network's grid, mm."""
        return tuple(float(size) for size in self.item["image"].pixdim)

    def on_file_grid(self, values: VoxelMap) -> MetaTensor:
        """A map ``(1, 1, *spatial)`` interpolated to the input file's own grid, ``(1, X, Y, Z)``."""
        plain = MetaTensor(values[0].detach().as_subclass(Tensor).cpu(), meta=self.item["image"].meta)
        undo = Invertd("map", self.preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)
        restored: MetaTensor = undo({**self.item, "map": plain})["map"]
        restored.affine = restored.meta["original_affine"]
        return restored

    def labels_from(self, path: Path) -> LabelMap:
        """Another label map of the case, such as its organs, on the network's grid, ``(1, 1, *spatial)``."""
        labels = LoadImage(image_only=True, ensure_channel_first=True)(path)
        # The network's grid may reach half a voxel beyond the file's: what lies there is as the voxel beside it.
        matched = ResampleToMatch(mode="nearest", padding_mode="border")(labels, self.item["image"])
        return matched.as_tensor().round().long()[None].to(self.image.device)


def load_case(case: Case, task: SegmentationTask, device: torch.device) -> CaseVolumes:
    """Read and normalise one case.

    Raises:
        CaseError: when a volume is bad, see `preprocessing`.
    """
    preprocess = preprocessing(task, with_label="label" in case)
    item = preprocess(dict(case))
    label = item.get("label")
    return CaseVolumes(
        name=case["case"],
        source=Path(case["image"]),
        image=item["image"][None].to(device),
        label=None if label is None else label.as_tensor()[None].round().long().to(device),
        item=item,
        preprocess=preprocess,
    )
