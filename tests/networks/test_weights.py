"""Checkpoints are tensors, never code; the first one that is there is loaded."""

import contextlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unoise_monai.networks import UNet, load_state, load_utility
from unoise_monai.networks.weights import load_weights
from unoise_monai.unoise import ExplainedSegmenter


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


def save_legacy_tar(thing: object, path: Path) -> None:
    """As PyTorch saved before 0.1.10."""
    records = {"storages": pickle.dumps(thing), "tensors": pickle.dumps(0), "pickle": pickle.dumps(thing)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in records.items():
            record = tarfile.TarInfo(name)
            record.size = len(data)
            archive.addfile(record, io.BytesIO(data))


SAVERS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "legacy": lambda thing, path: torch.save(thing, path, _use_new_zipfile_serialization=False),
    "tar": save_legacy_tar,
    "pickle": lambda thing, path: path.write_bytes(pickle.dumps(thing)),
    "old pickle": lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2)),
}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, kind: str, suffix: str) -> None:
    harm, bad = tmp_path / "harm.txt", tmp_path / f"bad{suffix}"
    SAVERS[kind]({"weight": WritesWhenLoaded(harm)}, bad)
    for load in (load_state, lambda path: load_weights(unet(), path), lambda path: load_utility(unet(), path)):
        with pytest.raises(ValueError, match=rf"bad\{suffix} must hold a state dict, tensors only: it ") as caught:
            load(bad)
        # PyTorch's own advice.
        assert "weights_only" not in str(caught.value)
    assert not harm.exists()
    if suffix == ".pt" and kind not in ("tar", "pickle"):
        assert "it asks to call posix.system, and code in a checkpoint is never run" in str(caught.value)
    if suffix == ".pt" and kind == "tar":
        assert "it is in PyTorch's legacy .tar format, which can run code" in str(caught.value)
    # The checkpoint would do harm: loading all that is pickled shows it.
    with contextlib.suppress(TypeError, RuntimeError):
        torch.load(bad.rename(tmp_path / "bad.bin"), weights_only=False)
    assert harm.exists()


def test_a_scripted_network_is_no_state(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "model.ts")
    with pytest.raises(ValueError, match=r"model\.ts must .*: it is in TorchScript, which can run code; save the"):
        load_state(tmp_path / "model.ts")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(unet().state_dict(), path)
    else:
        SAVERS[kind](unet().state_dict(), path)
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    for length in (0, 1, *chance.integers(len(whole), size=30), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.\w+ must hold a state dict, tensors only: it is \S"):
            load_state(path)
    for _ in range(60):
        changed = bytearray(whole)
        for position in chance.integers(len(whole), size=3):
            changed[position] = chance.integers(256)
        path.write_bytes(changed)
        # A tensor's bytes may be any: such a file loads. No other error than this comes out.
        with contextlib.suppress(ValueError):
            assert load_state(path)


def test_safetensors_load_like_any_checkpoint(tmp_path: Path) -> None:
    net = ExplainedSegmenter(unet(), unet(out_channels=1))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    other = ExplainedSegmenter(unet(), unet(out_channels=1))
    assert load_weights(other, tmp_path / "model.safetensors") is other
    assert same_state(other, net)
    assert same_state(load_utility(unet(), tmp_path / "model.safetensors"), net.utility)


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
    torch.save({"epoch": 3, "network": {}}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt must hold a state dict, names to tensors, got int at 'epoch'"):
        load_state(tmp_path / "run.pt")


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
    extra = len(unet(depth=3).state_dict()) - len(unet().state_dict())
    classes = r"2 of another shape \(head\.weight \(5, 2, 1, 1\) for \(2, 2, 1, 1\); head\.bias "
    for other, misfits in (
        (unet(depth=3), rf".*{extra} unexpected \("),
        (ExplainedSegmenter(unet(out_channels=5), unet(out_channels=1)), classes),
    ):
        path = saved(other, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=rf"weights in \S*other\.pt must fit the utility network, got {misfits}"):
            load_utility(unet(), path)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    net = unet()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = unet().state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("head")}, tmp_path / "headless.pt")
    with pytest.raises(ValueError, match=r"must fit the noise model, got 2 missing \(head\.weight; head\.bias\)$"):
        load_weights(net, tmp_path / "headless.pt", "noise model")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "wrapped.pt")
    misfits = rf"got {len(state)} missing \(.*; \.\.\.\), {len(state)} unexpected \(module\."
    with pytest.raises(ValueError, match=misfits):
        load_weights(net, tmp_path / "wrapped.pt")
