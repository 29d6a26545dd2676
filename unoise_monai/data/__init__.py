"""Volumes in: tasks, cases, splits, preprocessing, phantoms."""

from unoise_monai.data.bias import N4BiasCorrectiond
from unoise_monai.data.caching import case_dataset
from unoise_monai.data.decathlon import download_task, find_images, list_cases
from unoise_monai.data.phantom_cohort import write_phantom_cohort
from unoise_monai.data.phantoms import Phantom, Truth, abdomen_phantom
from unoise_monai.data.split import split_cases
from unoise_monai.data.task import SegmentationTask
from unoise_monai.data.transforms import preprocessing, training_transforms
from unoise_monai.data.validation import CaseError, LoadCased, case_name
from unoise_monai.data.vessel_labels import label_vessels
from unoise_monai.data.vessel_phantoms import vessel_phantom
from unoise_monai.data.vesselness import vessel_label
from unoise_monai.data.vessels import find_angiograms, list_vessel_cases

__all__ = [
    "CaseError",
    "LoadCased",
    "N4BiasCorrectiond",
    "Phantom",
    "SegmentationTask",
    "Truth",
    "abdomen_phantom",
    "case_dataset",
    "case_name",
    "download_task",
    "find_angiograms",
    "find_images",
    "label_vessels",
    "list_cases",
    "list_vessel_cases",
    "preprocessing",
    "split_cases",
    "training_transforms",
    "vessel_label",
    "vessel_phantom",
    "write_phantom_cohort",
]
