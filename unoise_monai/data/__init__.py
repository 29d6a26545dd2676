"""Volumes in: tasks, cases, splits, preprocessing."""

from unoise_monai.data.cases import Case
from unoise_monai.data.datasets import CaseDataset, case_dataset, choose_cases, split_cases
from unoise_monai.data.finding import download_task, find_cases, find_images, find_items, find_labelled, list_cases
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, case_name, load_volume
from unoise_monai.data.transforms import N4BiasCorrectiond, SegmentationTask, preprocessing, training_transforms
from unoise_monai.data.vessels import find_angiograms, label_vessels, list_vessel_cases, vessel_label

__all__ = [
    "Case",
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
    "find_cases",
    "find_images",
    "find_items",
    "find_labelled",
    "label_vessels",
    "list_cases",
    "list_vessel_cases",
    "load_volume",
    "preprocessing",
    "split_cases",
    "training_transforms",
    "vessel_label",
]
