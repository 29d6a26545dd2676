"""Which cases a comparison of methods runs on, and what of each it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, LoadImage, ResampleToMatch
from torch import Tensor

from unoise_monai.checks import check_choice
from unoise_monai.data import SegmentationTask, find_images, list_cases, preprocessing, split_cases
from unoise_monai.data.decathlon import Case
from unoise_monai.data.split import PARTS
from unoise_monai.types import Image, LabelMap, VoxelMap


def find_cases(
    path: str | Path,
    split_file: str | Path | None = None,
    part: str | None = None,
    lister: Callable[[Path], list[Case]] = list_cases,
    choice: int | str | Sequence[str] | None = None,
) -> list[Case]:
    """The cases to explain: of a Decathlon folder those with labels, else every volume that is found.

    Args:
        path: a Decathlon folder, a folder of volumes, or a file.
        split_file: of the training, see `split_cases`; with ``part``, the cases of one of its parts, such as the
            validation cases that no network was trained on.
        part: ``"training"``, ``"validation"``, ``"test"``, or None for all.
        lister: lists the cases of a folder that holds labels; that with a ``dataset.json`` by default.
        choice: the first so many, or a case or several by name; None for all.

    Raises:
        ValueError: when ``part`` is unknown, or given for cases without labels or a split.
        ValueError: when ``choice`` is below 1 or names a case that is not there.
        CaseError: as `list_cases`, `find_images` and `split_cases`.
    """
    path = Path(path)
    labelled = (lister is not list_cases and path.is_dir()) or (path / "dataset.json").is_file()
    cases = lister(path) if labelled else find_images(path)
    if part is not None:
        check_choice("part", part, PARTS)
        if split_file is None or not labelled:
            raise ValueError(f"part must be null where there is no split of labelled cases, got {part!r} for {path}")
        cases = split_cases(cases, split_file)[part]
    if choice is None:
        return cases
    if isinstance(choice, int):
        if choice < 1:
            raise ValueError(f"cases must be at least 1, got {choice}")
        return cases[:choice]
    choice = [choice] if isinstance(choice, str) else choice
    by_name = {case["case"]: case for case in cases}
    missing = [name for name in choice if name not in by_name]
    if missing:
        raise ValueError(
            f"cases must be named as in {path}, got {missing[:3]}; there are {len(by_name)}, such as "
            f"{list(by_name)[:3]}"
        )
    return [by_name[name] for name in choice]


@dataclass(frozen=True)
class CaseVolumes:
    """One case as the network sees it, and the way back to its file."""

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
        item = {
            **self.item,
            "map": MetaTensor(values[0].detach().as_subclass(Tensor).cpu(), meta=self.item["image"].meta),
        }
        inverted = Invertd("map", self.preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)(item)["map"]
        # The file's own affine to the bit, not the one that inverting every step in turn rounded.
        inverted.affine = inverted.meta["original_affine"]
        return inverted

    def labels_from(self, path: Path) -> LabelMap:
        """Another label map of the case, such as its organs, on the network's grid, ``(1, 1, *spatial)``.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{self.name} must have a label map {path}, got none")
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
