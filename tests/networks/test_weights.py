"""Checkpoints are tensors, never code; the first one that is there is loaded."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from unoise_monai import ExplainedSegmenter
from unoise_monai.networks import UNet, load_state, load_utility


def unet(out_channels: int = 2, depth: int = 2) -> UNet:
    return UNet(2, 1, out_channels, depth, channel_factor=1)


def saved(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


def same_state(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


class WritesWhenLoaded:
    """Unpickling this runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo harm > {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, save: object) -> None:
    harm = tmp_path / "harm.txt"
    save({"weight": WritesWhenLoaded(harm)}, tmp_path / "bad.pt")
    for load in (load_state, lambda path: load_utility(unet(), path)):
        with pytest.raises(pickle.UnpicklingError):
            load(tmp_path / "bad.pt")
    assert not harm.exists()
    # The checkpoint would do harm: a plain unpickling shows it.
    if save is not torch.save:
        pickle.loads((tmp_path / "bad.pt").read_bytes())  # noqa: S301
        assert harm.exists()


def test_load_state_gives_what_was_saved(tmp_path: Path) -> None:
    net = unet()
    state = load_state(str(saved(net, tmp_path / "a.pt")))
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_load_state_refuses_what_is_no_state(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights must be a checkpoint file, got .*absent\.pt"):
        load_state(tmp_path / "absent.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt must hold a state dict, names to tensors, got list"):
        load_state(tmp_path / "list.pt")


def test_first_checkpoint_that_is_there_wins(tmp_path: Path) -> None:
    first, second = unet(), unet()
    here, later = saved(first, tmp_path / "first.pt"), saved(second, tmp_path / "second.pt")
    utility = unet()
    assert load_utility(utility, [tmp_path / "absent.pt", here, str(later)]) is utility
    assert same_state(utility, first)
    assert not same_state(utility, second)


def test_whole_segmenter_gives_its_utility(tmp_path: Path) -> None:
    segmenter = ExplainedSegmenter(unet(), unet(out_channels=1))
    utility = load_utility(unet(), saved(segmenter, tmp_path / "model.pt"))
    assert same_state(utility, segmenter.utility)


def test_error_names_the_paths_and_the_command(tmp_path: Path) -> None:
    command = "python -m monai.bundle run training --config_file configs/train_utility.yaml"
    with pytest.raises(FileNotFoundError) as error:
        load_utility(unet(), [tmp_path / "a.pt", tmp_path / "b.pt"], command)
    assert str(error.value) == (
        f"no utility weights at {tmp_path / 'a.pt'} or {tmp_path / 'b.pt'}; train them with:\n  {command}"
    )
    with pytest.raises(FileNotFoundError, match=r"^no utility weights at \S*a\.pt$"):
        load_utility(unet(), tmp_path / "a.pt")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(unet(depth=3), tmp_path / "deep.pt")
    with pytest.raises(
        ValueError, match=r"(?s)the weights in \S*deep\.pt must fit the utility network: .*Unexpected key"
    ):
        load_utility(unet(), path)
    path = saved(ExplainedSegmenter(unet(out_channels=5), unet(out_channels=1)), tmp_path / "classes.pt")
    with pytest.raises(ValueError, match=r"(?s)must fit the utility network: .*size mismatch for head\.weight"):
        load_utility(unet(), path)
