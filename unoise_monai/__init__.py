"""Which voxels a 3D medical segmentation network relies on."""
