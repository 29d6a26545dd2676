"""Published explanations of a segmentation, in one call shape: ``attributor(image, target)`` to a map."""

from unoise_monai.attribution.ablation import FeatureAblation
from unoise_monai.attribution.base import Attributor
from unoise_monai.attribution.borders import border, border_mean
from unoise_monai.attribution.cam import GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM, LayerGradCAM
from unoise_monai.attribution.controls import EdgeMagnitude, Intensity, Random
from unoise_monai.attribution.deeplift import DeepLift, DeepLiftShap
from unoise_monai.attribution.fine_tuning import FineTuning
from unoise_monai.attribution.gradient import InputXGradient, Saliency
from unoise_monai.attribution.guided import Deconvolution, GuidedBackprop
from unoise_monai.attribution.hard_dice import HardDice, unperturbed_dice
from unoise_monai.attribution.iterative import IterativeROI, Round
from unoise_monai.attribution.layer_deeplift import LayerDeepLift
from unoise_monai.attribution.layer_guided import LayerGuidedActivation, LayerGuidedBackprop
from unoise_monai.attribution.layer_paths import InternalInfluence, LayerConductance, LayerIntegratedGradients
from unoise_monai.attribution.layers import find_layers
from unoise_monai.attribution.layerwise import LayerActivation, every_layer
from unoise_monai.attribution.learned import Learned
from unoise_monai.attribution.occlusion import Occlusion
from unoise_monai.attribution.path import GradientShap, IntegratedGradients
from unoise_monai.attribution.registry import METHODS, make_attributor, method_names
from unoise_monai.attribution.rise import RISE
from unoise_monai.attribution.roi import RegionOfInterest
from unoise_monai.attribution.smoothing import SmoothGrad, SmoothGradSquared, VarGrad
from unoise_monai.attribution.supervoxels import supervoxels
from unoise_monai.attribution.surrogate import KernelShap, Lime
from unoise_monai.attribution.targets import (
    Difference,
    Foreground,
    Region,
    SoftDice,
    Target,
    class_logits,
    class_sum,
    foreground_sum,
    voxel,
)
from unoise_monai.attribution.voxelwise import VoxelwiseMean

__all__ = [
    "METHODS",
    "RISE",
    "Attributor",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "Difference",
    "EdgeMagnitude",
    "FeatureAblation",
    "FineTuning",
    "Foreground",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientShap",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HardDice",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "Intensity",
    "InternalInfluence",
    "IterativeROI",
    "KernelShap",
    "LayerActivation",
    "LayerCAM",
    "LayerConductance",
    "LayerDeepLift",
    "LayerGradCAM",
    "LayerGuidedActivation",
    "LayerGuidedBackprop",
    "LayerIntegratedGradients",
    "Learned",
    "Lime",
    "Occlusion",
    "Random",
    "Region",
    "RegionOfInterest",
    "Round",
    "Saliency",
    "SmoothGrad",
    "SmoothGradSquared",
    "SoftDice",
    "Target",
    "VarGrad",
    "VoxelwiseMean",
    "border",
    "border_mean",
    "class_logits",
    "class_sum",
    "every_layer",
    "find_layers",
    "foreground_sum",
    "make_attributor",
    "method_names",
    "supervoxels",
    "unperturbed_dice",
    "voxel",
]
