"""Volumes in: tasks, cases, splits, preprocessing."""

from unoise_monai.data.datasets import CaseDataset, case_dataset, choose_cases, split_cases
from unoise_monai.data.finding import download_task, find_cohort, find_images, list_cases
from unoise_monai.data.reading import CaseError, LoadCased, case_name
from unoise_monai.data.task import SegmentationTask
from unoise_monai.data.transforms import N4BiasCorrectiond, preprocessing, training_transforms
from unoise_monai.data.vessels import find_angiograms, label_vessels, list_vessel_cases, vessel_cohort, vessel_label

__all__ = [
    "CaseDataset",
    "CaseError",
    "LoadCased",
    "N4BiasCorrectiond",
    "SegmentationTask",
    "case_dataset",
    "case_name",
    "choose_cases",
    "download_task",
    "find_angiograms",
    "find_cohort",
    "find_images",
    "label_vessels",
    "list_cases",
    "list_vessel_cases",
    "preprocessing",
    "split_cases",
    "training_transforms",
    "vessel_cohort",
    "vessel_label",
]
