"""What a task takes from a configuration, and what it refuses."""

import pytest
from tasks import BUNDLES, bundle_task, pancreas

NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/train_utility.yaml"))


def test_the_bundles_define_their_tasks() -> None:
    tasks = {name: bundle_task(name) for name in NAMES}
    hippocampus, abdomen = tasks["hippocampus_mr_unoise"], tasks["pancreas_ct_unoise"]
    # MR has no units: a z-score, and both parts of the hippocampus apart.
    assert hippocampus.ct_window_hu is None
    assert hippocampus.class_names == ("background", "anterior", "posterior")
    assert hippocampus.num_classes == 3
    # Koker et al. 2021 merge pancreas and tumour.
    assert abdomen.ct_window_hu == (-96.0, 215.0)
    assert abdomen.class_names == ("background", "pancreas+cancer")
    assert abdomen.num_classes == 2
    assert tasks["vessel_tof_mra_unoise"].top_percentile == 99.9
    assert all(len(task.spacing_mm) == len(task.patch_size) == 3 for task in tasks.values())
    # Patches go through a U-Net of depth 4 without padding.
    assert all(side % 8 == 0 for task in tasks.values() for side in task.patch_size)


def test_the_lists_of_a_configuration_become_tuples() -> None:
    task = pancreas(spacing_mm=[1.5, 1.5, 2.5], labels=["background", "organ"], merge_labels=False)
    assert task.spacing_mm == (1.5, 1.5, 2.5)
    assert task.class_names == ("background", "organ")
    assert task == pancreas(spacing_mm=(1.5, 1.5, 2.5), labels=("background", "organ"), merge_labels=False)
    hash(task)


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
        pancreas(**changes)
