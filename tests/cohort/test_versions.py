"""What made the files is named, without what differs between builds of the same version."""

import torch

from unoise_monai.runs.settings import about, software


def test_builds_of_a_version_are_the_same_software() -> None:
    assert f"torch {torch.__version__.split('+')[0]}" in software()
    assert "+" not in software()


def test_about_names_the_device() -> None:
    assert about("unoise explain", torch.device("cpu"))["device"].startswith("cpu (")
    assert about("unoise explain", None)["device"].startswith("that of each worker")
