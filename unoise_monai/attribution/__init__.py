"""Published explanations of a segmentation, in one call shape: ``attributor(image, target)`` to a map."""

# ruff: noqa: F401 - the names are here to be imported from here.
from unoise_monai.attribution.backpropagation import Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop
from unoise_monai.attribution.base import METHODS, Attributor, make_attributor, method_names, register
from unoise_monai.attribution.composed import SmoothGrad, SmoothGradSquared, VarGrad, VoxelwiseMean
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime, supervoxels
from unoise_monai.attribution.gradient import GradientShap, InputXGradient, IntegratedGradients, Saliency
from unoise_monai.attribution.iterative import FineTuning, IterativeROI, RegionOfInterest, Round
from unoise_monai.attribution.layer_methods import (
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    InternalInfluence,
    LayerCAM,
    LayerConductance,
    LayerDeepLift,
    LayerGradCAM,
    LayerGuidedActivation,
    LayerGuidedBackprop,
    LayerIntegratedGradients,
)
from unoise_monai.attribution.layers import LayerActivation, every_layer, find_layers
from unoise_monai.attribution.learned import EdgeMagnitude, Intensity, Learned, Random
from unoise_monai.attribution.perturbation import RISE, Occlusion
from unoise_monai.attribution.targets import (
    Difference,
    Foreground,
    HardDice,
    Region,
    SoftDice,
    Target,
    border,
    border_mean,
    class_logits,
    class_sum,
    foreground_sum,
    unperturbed_dice,
    voxel,
)
