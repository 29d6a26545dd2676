"""Feature ablation: how far the score falls without a supervoxel or an organ."""

from __future__ import annotations

import torch
from torch import Tensor

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAttributor, Features


class FeatureAblation(FeatureAttributor):
    """How far the score falls when a supervoxel, or an organ of a label map, is hidden.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, with features in place of windows.
    The method is Captum's ``FeatureAblation``; here it keeps to a time limit, in which the features come in random
    order and those not reached get 0.

    Costs a pass forward for each feature, and one. It sees nothing of a feature that another makes up for; `KernelShap`
    does. Options: see `FeatureAttributor`.
    """

    name = "feature_ablation"

    def effects(self, features: Features, score: Score) -> Tensor:
        order = torch.randperm(features.count)
        whole = score(features.image).cpu().double()
        values = torch.zeros(features.count, dtype=torch.float64)
        for batch in self.batches(features.count, score):
            hidden = order[batch.start : batch.stop]
            kept = torch.arange(features.count) != hidden[:, None]
            values[hidden] = whole - score(features.keeping(kept)).cpu().double()
        return values
