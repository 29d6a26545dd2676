"""Which voxels a 3D medical segmentation network relies on: learned noise masks (U-Noise) as MONAI bundles."""

from unoise_monai.unoise import ExplainedSegmenter, UNoise

__all__ = ["ExplainedSegmenter", "UNoise"]
