"""Options out of range are refused before work starts, by a message with the option, the rule and the value."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from unoise_monai.attribution import (
    RISE,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    FineTuning,
    GradientShap,
    IntegratedGradients,
    InternalInfluence,
    IterativeROI,
    KernelShap,
    LayerConductance,
    LayerIntegratedGradients,
    Lime,
    Occlusion,
    RegionOfInterest,
    SmoothGrad,
    VoxelwiseMean,
)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (IntegratedGradients, {"sign": "both"}, "sign must be one of 'signed', 'absolute', 'positive', got 'both'"),
        (IntegratedGradients, {"steps": 1}, "steps must be at least 2, got 1"),
        (IntegratedGradients, {"rule": "riemann_trapezoid"}, "rule must be one of 'gausslegendre', 'riemann_left'"),
        (IntegratedGradients, {"baseline": "black"}, "baseline must be one of 'zero'"),
        (GradientShap, {"samples": 0}, "samples must be at least 1, got 0"),
        (GradientShap, {"sigma": -0.1}, "sigma must be a finite number of at least 0, got -0.1"),
        (GradientShap, {"baselines": ()}, "baselines must be one or more of"),
        (DeepLift, {"baseline": "black"}, "baseline must be one of 'zero'"),
        (DeepLiftShap, {"baselines": ()}, "baselines must be one or more of"),
        (SmoothGrad, {"samples": 0}, "samples must be at least 1, got 0"),
        (SmoothGrad, {"sigma": -0.1}, "sigma must be a finite number of at least 0, got -0.1"),
        (SmoothGrad, {"method": "rise"}, "method must be one of 'saliency'"),
        (VoxelwiseMean, {"max_voxels": 0}, "max_voxels must be at least 1, got 0"),
        (VoxelwiseMean, {"time_limit_s": 0.0}, "time_limit_s must be above 0, got 0.0"),
        (VoxelwiseMean, {"method": SmoothGrad}, "layer_cam, guided_grad_cam, by its name or class, got <"),
        (LayerConductance, {"steps": 1}, "steps must be at least 2, got 1"),
        (LayerConductance, {"rule": "gausslegendre"}, "rule must be one of 'riemann_trapezoid', got 'gausslegendre'"),
        (LayerIntegratedGradients, {"rule": "simpson"}, "rule must be one of 'gausslegendre', 'riemann_left'"),
        (InternalInfluence, {"baseline": "nothing"}, "baseline must be one of 'zero'"),
        (Occlusion, {"baseline": float("nan")}, "baseline must hold finite values only"),
        (Occlusion, {"baseline": "grey"}, "baseline must be one of 'zero'"),
        (Occlusion, {"time_limit_s": 0}, "time_limit_s must be above 0, got 0"),
        (Occlusion, {"window": 0}, "window must be above 0, got 0"),
        (Occlusion, {"window": 4, "stride": -1}, "stride must be above 0, got -1"),
        (Occlusion, {"window": 4.5, "stride": 2}, "window must be whole voxels, got 4.5"),
        (Occlusion, {"window": 4, "stride": 5}, "stride must be at most the window on each axis, got 5 and 4"),
        (Occlusion, {"window": (4, 4, 2), "stride": 3}, "at most the window on each axis, got 3 and (4, 4, 2)"),
        (Occlusion, {"window": (4, 4), "stride": (1, 1, 1)}, "stride must be at most the window on each axis"),
        (Occlusion, {"unit": "cm"}, "unit must be one of 'voxels', 'mm', got 'cm'"),
        (RISE, {"masks": 0}, "masks must be at least 1, got 0"),
        (RISE, {"cells": 0}, "cells must be at least 1 on each axis, got 0"),
        (RISE, {"cells": (3, 0)}, "cells must be at least 1 on each axis, got (3, 0)"),
        (RISE, {"visible": 0}, "visible must be above 0 and at most 1, got 0"),
        (RISE, {"visible": 1}, "visible must be below 1, or nothing is hidden, got 1"),
        (
            FeatureAblation,
            {"labels": torch.zeros(2, 1, 4, 4)},
            "labels must be one map, (1, 1, *spatial), got (2, 1, 4",
        ),
        (FeatureAblation, {"size": 0}, "size must be integers of at least 1, one or one an axis, got 0"),
        (FeatureAblation, {"compactness": -1}, "compactness must be above 0, got -1"),
        (Lime, {"samples": 1}, "samples must be at least 2, got 1"),
        (Lime, {"kernel_width": 0}, "kernel_width must be above 0, got 0"),
        (Lime, {"ridge": -1}, "ridge must be at least 0, got -1"),
        (KernelShap, {"samples": 1}, "samples must be at least 2, got 1"),
        (IterativeROI, {"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
        (IterativeROI, {"min_probability": 1.5}, "min_probability must lie in [0, 1], got 1.5"),
        (IterativeROI, {"hidden": float("nan")}, "hidden must hold finite values only"),
        (IterativeROI, {"hidden": "grey"}, "hidden must be one of 'zero', 'mean'"),
        (RegionOfInterest, {"level": 0.0}, "level must be above 0 and at most 1, got 0.0"),
        (RegionOfInterest, {"quantile": 1.5}, "quantile must be above 0 and at most 1, got 1.5"),
        (RegionOfInterest, {"threshold": -0.5}, "threshold must be above 0 and at most 1, got -0.5"),
        (RegionOfInterest, {"box": 4}, "box must hold odd numbers above 0, got 4"),
        (RegionOfInterest, {"box": (3, -1)}, "box must hold odd numbers above 0, got (3, -1)"),
        (RegionOfInterest, {"passes": -1}, "passes must be at least 0, got -1"),
        (FineTuning, {"steps": 0}, "steps must be at least 1, got 0"),
        (FineTuning, {"lr": -0.1}, "lr must be a finite number above 0, got -0.1"),
    ],
)
def test_an_option_out_of_range(method: Any, options: dict[str, Any], says: str) -> None:
    arguments = () if method in (RegionOfInterest, FineTuning) else (nn.Conv2d(1, 2, 1),)
    with pytest.raises(ValueError, match=re.escape(says)):
        method(*arguments, **options)
