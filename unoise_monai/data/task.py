"""What a segmentation task is: its labels, its grid, its intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentationTask:
    """How the volumes of one task are read in training, evaluation and inference; ``task`` of a bundle's configuration.

    Intensities become a z-score on the foreground (the voxels that are not 0) unless ``ct_window_hu`` or
    ``top_percentile`` is given. Sequences become tuples.

    Args:
        name: of a Decathlon task, its folder, as `monai.apps.DecathlonDataset` names it.
        labels: names of the classes, background first; a label map may hold their indices only.
        spacing_mm: voxel size that the networks work on, ``(x, y, z)`` in mm.
        patch_size: training crops, in voxels.
        ct_window_hu: Hounsfield range mapped linearly to [-2, 2] and clipped.
        top_percentile: the range from the lowest intensity to this percentile of all voxels is mapped linearly to
            [-1, 3] and clipped: for angiograms, whose soft tissue may have been removed.
        bias_correction: N4 before the normalisation, see `N4BiasCorrectiond`.
        merge_labels: all labels become one foreground class, as in Koker et al. 2021.

    Raises:
        ValueError: when there are fewer than two labels, a spacing or a side of the patch is not above 0, the CT
            window is not in rising order, the percentile is not above 0 and at most 100, or both are given.
    """

    name: str
    labels: Sequence[str]
    spacing_mm: Sequence[float]
    patch_size: Sequence[int]
    ct_window_hu: Sequence[float] | None = None
    top_percentile: float | None = None
    bias_correction: bool = False
    merge_labels: bool = False

    def __post_init__(self) -> None:
        for name in ("labels", "spacing_mm", "patch_size", "ct_window_hu"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if len(self.labels) < 2:
            raise ValueError(f"labels must name the background and at least one class, got {self.labels}")
        for name, values in (("spacing_mm", self.spacing_mm), ("patch_size", self.patch_size)):
            if not min(values) > 0:
                raise ValueError(f"{name} must be above 0, got {values}")
        if self.ct_window_hu is not None and not self.ct_window_hu[0] < self.ct_window_hu[1]:
            raise ValueError(f"ct_window_hu must be in rising order, got {self.ct_window_hu}")
        if self.top_percentile is not None and not 0 < self.top_percentile <= 100:
            raise ValueError(f"top_percentile must be above 0 and at most 100, got {self.top_percentile}")
        if self.ct_window_hu is not None and self.top_percentile is not None:
            both = f"{self.ct_window_hu} and {self.top_percentile}"
            raise ValueError(f"ct_window_hu and top_percentile must not both be given, got {both}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that a network of this task predicts, background first."""
        return (self.labels[0], "+".join(self.labels[1:])) if self.merge_labels else tuple(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
