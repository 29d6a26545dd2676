"""Volumes in: Decathlon tasks, splits, preprocessing, phantoms."""

from unoise_monai.data.caching import case_dataset
from unoise_monai.data.decathlon import (
    TASKS,
    DecathlonTask,
    decathlon_task,
    download_task,
    find_images,
    list_cases,
)
from unoise_monai.data.phantoms import Phantom, Truth, abdomen_phantom, write_phantom_cohort
from unoise_monai.data.preprocessing import preprocessing, training_transforms
from unoise_monai.data.split import split_cases
from unoise_monai.data.validation import CaseError, LoadCased, case_name

__all__ = [
    "TASKS",
    "CaseError",
    "DecathlonTask",
    "LoadCased",
    "Phantom",
    "Truth",
    "abdomen_phantom",
    "case_dataset",
    "case_name",
    "decathlon_task",
    "download_task",
    "find_images",
    "list_cases",
    "preprocessing",
    "split_cases",
    "training_transforms",
    "write_phantom_cohort",
]
