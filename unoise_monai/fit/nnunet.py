"""An nnU-Net v2 results folder: its plans, its own preprocessing as one invertible transform, its windows."""

import importlib
import inspect
import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import InvertibleTransform, MapTransform, Orientationd, Transform
from nibabel.orientations import aff2axcodes
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.checks import check_choice
from unoise_monai.data.headers import NIFTI
from unoise_monai.data.reading import CaseCompose
from unoise_monai.fit.models import Model

PLANS, DATASET = "plans.json", "dataset.json"
READERS = {"SimpleITKIO": None, "NibabelIO": None, "SimpleITKIOWithReorient": "RAS", "NibabelIOWithReorient": "RAS"}
"""nnU-Net's readers of volumes, and the axes that they turn an image to."""


def _nnunet(module: str) -> ModuleType:
    """A module of nnU-Net.

    Raises:
        ValueError: when it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(f"nnunetv2.{module}")
    except ImportError as error:
        raise ValueError(
            f"nnU-Net's results need nnU-Net, which is not here: pip install nnunetv2 ({error})"
        ) from error


class Plans:
    """The plans of a results folder, for one configuration.

    Args:
        folder: with ``plans.json`` and ``dataset.json``.
        configuration: its name.

    Raises:
        FileNotFoundError: when one of the files is not there.
        ValueError: when nnU-Net is not installed; when the plans have no such configuration, or it is 2-D or the second
            stage of a cascade; when images are read by a reader not among `READERS`; when regions are not painted with
            a label of their own each.
    """

    def __init__(self, folder: str | Path, configuration: str) -> None:
        plans_file, dataset_file = (Path(folder) / name for name in (PLANS, DATASET))
        self.dataset = json.loads(dataset_file.read_text(encoding="utf-8"))
        self.manager = _nnunet("utilities.plans_handling.plans_handler").PlansManager(str(plans_file))
        if configuration not in self.manager.available_configurations:
            names = ", ".join(self.manager.available_configurations)
            raise ValueError(f"configuration must be one of the plans', {names}, got {configuration}")
        self.configuration = self.manager.get_configuration(configuration)
        if len(self.configuration.patch_size) != 3 or self.configuration.previous_stage_name is not None:
            rule = "configuration must be a 3-D one that needs no other before it, such as 3d_fullres"
            raise ValueError(f"{rule}, got {configuration}")
        self.reader = self.manager.plans.get("image_reader_writer", "SimpleITKIO")
        check_choice("image_reader_writer", self.reader, tuple(READERS))
        self.labels = self.manager.get_label_manager(self.dataset)
        self.order = tuple(self.dataset["regions_class_order"]) if self.labels.has_regions else ()
        if sorted(self.order) != list(range(1, len(self.order) + 1)):
            raise ValueError(f"regions_class_order must hold each of 1 to {len(self.order)} once, got {self.order}")


def _spacing_mm(image: MetaTensor, reader: str) -> list[float]:
    """Voxel sizes in nnU-Net's order of axes, as nnU-Net reads them: of NIfTI those of the header.

    The size on the network's grid is rounded: a half, as of 55 voxels of 0.9 mm in voxels of 1 mm, would become another
    number by the last digit of an oblique affine.
    """
    sizes, file = image.pixdim.numpy(), Path(str(image.meta.get("filename_or_obj", "")))
    if (
        reader == "NibabelIOWithReorient"
        and "".join(aff2axcodes(image.meta.get("original_affine", image.affine))) != "RAS"
    ):
        # Of a turned image nibabel writes a header anew.
        sizes = sizes.astype(np.float32)
    elif file.name.lower().endswith(NIFTI) and file.is_file():
        zooms = np.array(nib.load(file).header.get_zooms()[:3])
        # The axes may have been turned.
        sizes = zooms[np.abs(zooms - sizes[:, None]).argmin(axis=1)]
    return [float(size) for size in sizes[::-1]]


class NnUNetPreprocessd(MapTransform, InvertibleTransform):
    """nnU-Net's own preprocessing: its transpose, crop to what is not 0, normalisation and resampling; and back.

    Args:
        folder: with the plans.
        configuration: its name.
        key: the image.

    Shape:
        ``(C, X, Y, Z)`` to ``(C, *spatial)`` in the network's order of axes, with the affine that places each voxel.
        Back, logits and maps ``(K, *spatial)`` are resampled as nnU-Net resamples logits, and 0 outside of the crop.
    """

    def __init__(self, folder: str | Path, configuration: str, key: str = "image") -> None:
        super().__init__([key])
        self.folder, self.name = str(folder), configuration
        self._plans: Plans | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": None}

    @property
    def plans(self) -> Plans:
        """Read when they are needed, in each process."""
        if self._plans is None:
            self._plans = Plans(self.folder, self.name)
        return self._plans

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image: MetaTensor = d[self.keys[0]]
        plans, forward = self.plans, list(self.plans.manager.transpose_forward)
        properties: dict[str, Any] = {"spacing": _spacing_mm(image, plans.reader)}
        # nnU-Net's axes are z, y, x.
        voxels = image.as_tensor().permute(0, 3, 2, 1).numpy()
        preprocessor = plans.configuration.preprocessor_class(verbose=False)
        array, _, properties = preprocessor.run_case_npy(
            voxels, None, properties, plans.manager, plans.configuration, plans.dataset
        )
        crop = [[int(low), int(high)] for low, high in properties["bbox_used_for_cropping"]]
        cropped = [high - low for low, high in crop]
        # From an index of the network's grid to one of the file's: voxel centres of the crop, in nnU-Net's order.
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for axis, (old, new, (low, _)) in enumerate(zip(cropped, array.shape[1:], crop, strict=True)):
            of_file = 2 - forward[axis]
            matrix[of_file, axis] = old / new
            matrix[of_file, 3] = 0.5 * old / new - 0.5 + low
        result = MetaTensor(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), meta=image.meta)
        result.applied_operations = list(image.applied_operations)
        result.affine = image.affine @ torch.as_tensor(matrix, dtype=image.affine.dtype)
        self.push_transform(
            result,
            orig_size=tuple(image.shape[1:]),
            extra_info={"crop": crop, "spacing": properties["spacing"], "affine": image.affine.tolist()},
        )
        d[self.keys[0]] = result
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        values: MetaTensor = d[self.keys[0]]
        done = self.pop_transform(values)
        plans, crop = self.plans, done["extra_info"]["crop"]
        forward, backward = list(plans.manager.transpose_forward), list(plans.manager.transpose_backward)
        old_spacing = [done["extra_info"]["spacing"][axis] for axis in forward]
        sizes = [high - low for low, high in crop]
        resampled = plans.configuration.resampling_fn_probabilities(
            values.as_tensor().float().cpu().numpy(), sizes, plans.configuration.spacing, old_spacing
        )
        shape = [done["orig_size"][2 - axis] for axis in forward]
        # Of equal logits the first is the largest, that of the background; one that is not above 0 is background, too.
        whole = torch.zeros((len(values), *shape))
        whole[(slice(None), *(slice(low, high) for low, high in crop))] = torch.as_tensor(np.asarray(resampled))
        back = whole.permute(0, *(axis + 1 for axis in backward)).permute(0, 3, 2, 1).contiguous()
        result = MetaTensor(back, meta=values.meta)
        result.applied_operations = list(values.applied_operations)
        result.affine = torch.tensor(done["extra_info"]["affine"], dtype=values.affine.dtype)
        d[self.keys[0]] = result
        return d


class NnUNetInferer(Inferer):
    """nnU-Net's sliding windows: its steps, its Gaussian weights, and the mean over mirrored windows.

    Args:
        folder: with the plans.
        configuration: its name.
        mirrored_axes: of the network's grid, over all combinations of which the mean is taken; none for one pass.
        step: of the window, as a share of it.

    Shape:
        ``(1, C, *spatial)`` to float32 ``(1, K, *spatial)``; smaller volumes are padded with 0, as nnU-Net does.
    """

    def __init__(
        self, folder: str | Path, configuration: str, mirrored_axes: tuple[int, ...] = (), step: float = 0.5
    ) -> None:
        super().__init__()
        self.patch_size = tuple(Plans(folder, configuration).configuration.patch_size)
        self.mirrored_axes, self.step = tuple(mirrored_axes), step

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        windows = _nnunet("inference.sliding_window_prediction")
        size, patch = inputs.shape[2:], self.patch_size
        missing = [max(side - length, 0) for side, length in zip(patch, size, strict=True)]
        before = [each // 2 for each in missing]
        ends = [n for b, m in zip(reversed(before), reversed(missing), strict=True) for n in (b, m - b)]
        image = F.pad(inputs.as_subclass(Tensor), ends)
        weight = windows.compute_gaussian(patch, sigma_scale=1 / 8, dtype=torch.float32, device=image.device)
        starts = windows.compute_steps_for_sliding_window(tuple(image.shape[2:]), patch, self.step)
        total, count = image.new_zeros(0), image.new_zeros(image.shape[2:])
        for corner in itertools.product(*starts):
            place = _slices(corner, patch)
            part = self._mirrored(image[place], lambda window: network(window, *args, **kwargs).float())
            total = total if total.numel() else part.new_zeros((*part.shape[:2], *image.shape[2:]))
            total[place] += part * weight
            count[place] += weight
        return (total / count)[_slices(before, size)]

    def _mirrored(self, window: Tensor, predict: Any) -> Tensor:
        chosen = [2 + axis for axis in self.mirrored_axes]
        flips = [flip for count in range(len(chosen) + 1) for flip in itertools.combinations(chosen, count)]
        parts = [torch.flip(predict(torch.flip(window, flip)), flip) if flip else predict(window) for flip in flips]
        return torch.stack(parts).mean(dim=0)


def _slices(starts: Sequence[int], sides: Sequence[int]) -> Any:
    """The index of a block in the last axes of a tensor."""
    return (..., *(slice(start, start + side) for start, side in zip(starts, sides, strict=True)))


class NnUNetModel(Model):
    """The network of an nnU-Net v2 results folder (``.../Dataset004_X/nnUNetTrainer__nnUNetPlans__3d_fullres``).

    Args:
        folder: with ``plans.json``, ``dataset.json`` and ``fold_0``, ....
        configuration: its name; by default the end of the folder's.
        trainer: name of the class that trained, which also builds the network; by default the folder's beginning.
        fold: whose weights count.
        mirrored_axes: see `NnUNetInferer`.

    Raises:
        FileNotFoundError, ValueError: see `Plans`.
    """

    needs = (PLANS, DATASET)

    def __init__(
        self,
        folder: str | Path,
        configuration: str | None = None,
        trainer: str | None = None,
        fold: int | str = 0,
        mirrored_axes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(folder)
        name = self.folder.resolve().name
        self.configuration = configuration or name.rpartition("__")[2]
        self.trainer = trainer or name.partition("__")[0]
        self.fold, self.mirrored_axes = fold, tuple(mirrored_axes)
        self.plans = Plans(folder, self.configuration)
        dataset = self.plans.dataset
        self.channels = len(dataset.get("channel_names") or dataset["modality"])
        self.patch_size = tuple(self.plans.configuration.patch_size)
        names = [name for name in dataset["labels"] if name not in ("background", "ignore")]
        self.regions = bool(self.plans.order)
        if self.regions:
            self.region_labels = self.plans.order
            labels = dict(zip(self.plans.order, names, strict=True))
        else:
            labels = {int(dataset["labels"][name]): name for name in names}
        self.class_names = ("background", *(labels[value] for value in sorted(labels)))

    def network(self) -> nn.Module:
        plans = self.plans
        find = _nnunet("utilities.find_objects").recursive_find_trainer_class_by_name
        try:
            build = find(self.trainer).build_network_architecture
        except RuntimeError as error:
            raise ValueError(f"trainer must be a class that nnU-Net finds, got {self.trainer}: {error}") from error
        arch = plans.configuration
        # Of older nnU-Nets, and of trainers written for them.
        old = (arch.network_arch_class_name, arch.network_arch_init_kwargs, arch.network_arch_init_kwargs_req_import)
        given = (plans.manager, arch) if "plans_manager" in inspect.signature(build).parameters else old
        made: nn.Module = build(
            *given, self.channels, plans.labels.num_segmentation_heads, enable_deep_supervision=False
        )
        return made

    def weights(self) -> Path:
        folder = self.folder / f"fold_{self.fold}"
        found = [folder / f"checkpoint_{kind}.pth" for kind in ("final", "best", "latest")]
        there = [path for path in found if path.is_file()]
        if not there:
            raise FileNotFoundError(f"{folder} must hold {found[0].name}, got none; name another --fold")
        return there[0]

    def steps(self) -> list[Transform]:
        axes = READERS[self.plans.reader]
        turned = [] if axes is None else [Orientationd("image", axcodes=axes, labels=None)]
        return [*turned, NnUNetPreprocessd(self.folder, self.configuration)]

    def preprocessing(self, with_label: bool = False) -> CaseCompose:
        """See `Model.preprocessing`.

        Raises:
            ValueError: when label maps hold values that are no class.
        """
        values = [
            *self.plans.labels.all_labels,
            *([self.plans.labels.ignore_label] * self.plans.labels.has_ignore_label),
        ]
        if with_label and (others := [int(value) for value in values if value >= len(self.class_names)]):
            rule = f"label maps must hold the classes 0 to {len(self.class_names) - 1} alone to train on them"
            raise ValueError(f"{rule}, got {others} in {DATASET}; use --labels model")
        return super().preprocessing(with_label)

    def inferer(self, memory_gb: float | None = None, precision: str = "auto") -> Inferer:
        return NnUNetInferer(self.folder, self.configuration, self.mirrored_axes)
