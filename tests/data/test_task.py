"""The defaults of the tasks, and what a configuration may change."""

import pytest

from unoise_monai.data.task import TASKS, segmentation_task


def test_tasks_have_their_own_defaults() -> None:
    hippocampus, pancreas = TASKS["Task04_Hippocampus"], TASKS["Task07_Pancreas"]
    assert all(task.name == name for name, task in TASKS.items())
    # MR has no units: a z-score, and both parts of the hippocampus apart.
    assert hippocampus.ct_window_hu is None
    assert hippocampus.class_names == ("background", "anterior", "posterior")
    assert hippocampus.num_classes == 3
    # Koker et al. 2021 merge pancreas and tumour.
    assert pancreas.ct_window_hu == (-96.0, 215.0)
    assert pancreas.class_names == ("background", "pancreas+cancer")
    assert pancreas.num_classes == 2
    assert all(len(task.spacing_mm) == len(task.patch_size) == 3 for task in TASKS.values())
    # Patches go through a U-Net of depth 4 without padding.
    assert all(side % 8 == 0 for task in TASKS.values() for side in task.patch_size)


def test_a_configuration_changes_single_defaults() -> None:
    task = segmentation_task("Task07_Pancreas", spacing_mm=[1.5, 1.5, 2.5], merge_labels=False)
    assert task.spacing_mm == (1.5, 1.5, 2.5)
    assert task.class_names == ("background", "pancreas", "cancer")
    assert task.ct_window_hu == TASKS["Task07_Pancreas"].ct_window_hu
    assert TASKS["Task07_Pancreas"].merge_labels
    with pytest.raises(ValueError, match=r"task must be one of 'Task04_Hippocampus', .* got 'Task99'"):
        segmentation_task("Task99")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": ["background"]}, "labels must name the background"),
        ({"spacing_mm": [1.0, 0.0, 1.0]}, "spacing_mm must be above 0"),
        ({"patch_size": [8, -8, 8]}, "patch_size must be above 0"),
        ({"ct_window_hu": [215.0, -96.0]}, "ct_window_hu must be in rising order"),
        ({"ct_window_hu": None, "top_percentile": 0.0}, "top_percentile must be above 0 and at most 100, got 0.0"),
        ({"ct_window_hu": None, "top_percentile": 101.0}, "top_percentile must be above 0 and at most 100, got 101.0"),
        ({"top_percentile": 99.0}, "ct_window_hu and top_percentile must not both be given"),
    ],
)
def test_a_task_refuses_bad_values(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        segmentation_task("Task07_Pancreas", **changes)
