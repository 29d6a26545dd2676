"""An nnU-Net v2 results folder: its plans, its own preprocessing as one invertible transform, its windows."""

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import InvertibleTransform, MapTransform, Orientationd, Transform
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.fit.models import Model

PLANS, DATASET = "plans.json", "dataset.json"
READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
CONFIGURATIONS = ("3d_fullres", "3d_lowres")


def _nnunet(module: str) -> ModuleType:
    """A module of nnU-Net.

    Raises:
        ModuleNotFoundError: when it is not installed; with the command that does.
    """
    try:
        return __import__(f"nnunetv2.{module}", fromlist=[""])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"nnU-Net must be installed, pip install nnunetv2: {error}") from error


class Plans:
    """The plans of a results folder, for one configuration.

    Args:
        folder: with ``plans.json`` and ``dataset.json``.
        configuration: its name.

    Raises:
        FileNotFoundError: when one of the files is not there.
        ValueError: when the configuration is not a 3-D one without a cascade, or images are read otherwise.
    """

    def __init__(self, folder: str | Path, configuration: str) -> None:
        plans_file, dataset_file = (Path(folder) / name for name in (PLANS, DATASET))
        self.dataset = json.loads(dataset_file.read_text(encoding="utf-8"))
        self.manager = _nnunet("utilities.plans_handling.plans_handler").PlansManager(str(plans_file))
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"configuration must be one of {', '.join(CONFIGURATIONS)}, got {configuration}")
        self.configuration = self.manager.get_configuration(configuration)
        self.reader = self.manager.plans.get("image_reader_writer", READERS[0])
        if self.reader not in READERS:
            raise ValueError(f"images must be read by one of {', '.join(READERS)}, got {self.reader}")
        self.labels = self.manager.get_label_manager(self.dataset)


class NnUNetPreprocessd(MapTransform, InvertibleTransform):
    """nnU-Net's own preprocessing: its transpose, crop to what is not 0, normalisation and resampling; and back.

    Args:
        folder: with the plans.
        configuration: its name.
        key: the image.

    Shape:
        ``(C, X, Y, Z)`` to ``(C, *spatial)`` in the network's order of axes, with the affine that places each voxel.
        Back, logits and maps ``(K, *spatial)`` are resampled as nnU-Net resamples probabilities; outside of the crop
        there is background, and 0 in maps.
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
        properties: dict[str, Any] = {"spacing": [float(size) for size in reversed(image.pixdim)]}
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
        whole = torch.zeros((len(values), *shape))
        # A map alone is 0 there, one logit that of no foreground, of more classes the background is the largest.
        whole[0] = {1: 0.0, 2: -1.0}.get(len(values), 1.0)
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
        fold: int | str = 0,
        mirrored_axes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(folder)
        self.configuration = configuration or self.folder.resolve().name.rpartition("__")[2]
        self.fold, self.mirrored_axes = fold, tuple(mirrored_axes)
        self.plans = Plans(folder, self.configuration)
        dataset = self.plans.dataset
        self.channels = len(dataset.get("channel_names") or dataset.get("modality"))
        self.regions = bool(self.plans.labels.has_regions)
        self.patch_size = tuple(self.plans.configuration.patch_size)
        labels = dataset["labels"]
        if self.regions:
            # Painted in this order: a region has the label that stands for it there.
            self.class_names = ("background", *(name for name in labels if name not in ("background", "ignore")))
        else:
            values = {int(value): name for name, value in labels.items() if name != "ignore"}
            self.class_names = tuple(values[value] for value in sorted(values))

    def network(self) -> nn.Module:
        arch = self.plans.configuration
        made: nn.Module = _nnunet("utilities.get_network_from_plans").get_network_from_plans(
            arch.network_arch_class_name,
            arch.network_arch_init_kwargs,
            arch.network_arch_init_kwargs_req_import,
            self.channels,
            self.plans.labels.num_segmentation_heads,
            allow_init=False,
            deep_supervision=False,
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
        again = [Orientationd("image", axcodes="RAS", labels=None)] if self.plans.reader == READERS[2] else []
        return [*again, NnUNetPreprocessd(self.folder, self.configuration)]

    def inferer(self, memory_gb: float | None = None, precision: str = "auto") -> Inferer:
        return NnUNetInferer(self.folder, self.configuration, self.mirrored_axes)
