"""What a user's model is, is found out; its weights are unwrapped, and code in them is never run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bright import LIKE, Bright
from torch import nn

from unoise_monai.bundle import UntrustedBundle
from unoise_monai.fit import load, wrap
from unoise_monai.networks.weights import unwrapped

STATE = Bright().state_dict()


@pytest.fixture
def like(tmp_path: Path) -> Path:
    path = tmp_path / "like.yaml"
    path.write_text(LIKE, encoding="utf-8")
    return path


def prefixed(prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in STATE.items()}


CHECKPOINTS = {
    "plain": (STATE, []),
    "model": ({"model": STATE, "epoch": 3}, ["taken from 'model'"]),
    "state_dict": ({"state_dict": STATE}, ["taken from 'state_dict'"]),
    "lightning": (
        {"state_dict": {**prefixed("net."), "loss.weight": torch.ones(2)}, "callbacks": {}, "epoch": 2},
        ["taken from 'state_dict'", "prefix 'net.' removed, 1 others left out"],
    ),
    "ddp": (prefixed("module."), ["prefix 'module.' removed"]),
    "compiled ddp": (prefixed("_orig_mod.module."), ["prefix '_orig_mod.' removed", "prefix 'module.' removed"]),
    "nnunet": (
        {"network_weights": STATE, "logging": {"ema_fg_dice": [np.float64(0.5)]}, "init_args": {"fold": 0}},
        ["taken from 'network_weights'"],
    ),
    "explained": (
        {**prefixed("utility."), "noise_model.weight": torch.ones(1)},
        ["prefix 'utility.' removed, 1 others left out"],
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights_are_unwrapped_and_it_is_said(kind: str, like: Path) -> None:
    checkpoint, said = CHECKPOINTS[kind]
    path = like.with_name("weights.pt")
    torch.save(checkpoint, path)
    found = load("bright:Bright", path, like)
    assert found.notes[-1] == ", ".join(["weights: all 2 of weights.pt fit", *said])
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, STATE[name])
    assert not found.network.training


def test_weights_of_a_network_are_not_unwrapped_beyond_its_own_names() -> None:
    inner = nn.Sequential()
    inner.add_module("model", Bright())
    state, said = unwrapped({"model.conv.weight": STATE["conv.weight"]}, inner)
    assert (list(state), said) == (["model.conv.weight"], [])


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_code_in_weights_is_refused(like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = like.with_name("weights.pt")
    torch.save({"state_dict": STATE, "extra": Code()}, path)
    with pytest.raises(ValueError, match=r"asks to call .*print, and code in a checkpoint is never run"):
        load("bright:Bright", path, like)
    assert capsys.readouterr().out == ""


def test_weights_of_another_network_are_refused(like: Path) -> None:
    path = like.with_name("weights.pt")
    torch.save(nn.Conv3d(1, 1, 3).state_dict(), path)
    with pytest.raises(ValueError, match=r"weights in .*weights.pt must fit the Bright, got 2 missing"):
        load("bright:Bright", path, like)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("bright:Bright", {}, ValueError, "--like must name a bundle or a YAML that says how bright:Bright wants"),
        ("bright:Bright", {"like": True}, FileNotFoundError, "--weights must name the checkpoint of bright:Bright"),
        ("bright:Dark", {"like": True}, ValueError, "MODEL must be package.module:factory, got 'bright:Dark'"),
        ("nothing_of_it:Bright", {"like": True}, ValueError, "No module named 'nothing_of_it'"),
        ("bright", {"like": True}, ValueError, r"a folder, a .ts or .pt2 file or package.module:factory, got bright"),
        ("gone.ts", {"like": True}, FileNotFoundError, "MODEL must be there, got gone.ts, which is not"),
        (".", {}, ValueError, "must be a MONAI bundle or nnU-Net's results"),
    ],
)
def test_what_is_no_model_says_what_one_is(
    source: str, options: dict[str, Any], error: type[Exception], message: str, like: Path
) -> None:
    if "like" in options:
        options = {**options, "like": like}
    with pytest.raises(error, match=message):
        load(like.parent if source == "." else source, **options)


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_a_network_with_its_own_code_gives_what_it_gave(suffix: str, like: Path) -> None:
    image = torch.randn(1, 1, 16, 16, 16)
    path = like.with_name(f"network{suffix}")
    if suffix == ".ts":
        torch.jit.script(Bright()).save(path)
    else:
        dims = {axis: torch.export.Dim.AUTO for axis in (2, 3, 4)}
        torch.export.save(torch.export.export(Bright().eval(), (image,), dynamic_shapes=(dims,)), path)
    found = load(path, like=like)
    torch.testing.assert_close(found.network(image[..., :12]), Bright()(image[..., :12]))
    assert found.network.train().training
    with pytest.raises(ValueError, match="--weights must not be given"):
        load(path, path, like)
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match="must hold TorchScript or an exported program"):
        load(path, like=like)


def test_a_network_in_memory_becomes_torchscript(like: Path) -> None:
    found = wrap(Bright().train(), like)
    assert found.notes == ["network: Bright, from memory"]
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(found.network(image), Bright()(image))

    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy())

    with pytest.raises(ValueError, match="network must become TorchScript, pass an example"):
        wrap(Dynamic(), like)


def test_a_bundle_has_to_be_trusted(like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "list"))
    bundle = tmp_path / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "inference.json").write_text(json.dumps({"imports": ["$1 / 0"]}), encoding="utf-8")
    for model, similar in ((bundle, None), ("bright:Bright", bundle)):
        with pytest.raises(UntrustedBundle, match="must be trusted before it runs"):
            load(model, like=similar)
