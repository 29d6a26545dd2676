"""A device is found, or said not to be there."""

import pytest
import torch

from unoise_monai.runs.settings import find_device


def test_auto_takes_what_there_is() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "mps"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'"):
        find_device(name)
