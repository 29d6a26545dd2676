"""The ``unoise`` command: what its exit status means, and what its help says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unoise_monai.cli.codes import Exit
from unoise_monai.cli.main import COMMANDS, main, parser
from unoise_monai.runs.records import claimed


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nothing"])
    assert caught.value.code == Exit.USAGE
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_help_names_every_command_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(command.__name__.rsplit(".")[-1] in text for command in COMMANDS)
    assert all(f"{code.value} {code.name.lower().replace('_', ' ')}" in " ".join(text.split()) for code in Exit)


@pytest.mark.parametrize("command", ["explain", "report", "render", "phantom", "doctor"])
def test_every_option_has_help(command: str) -> None:
    (commands,) = (action for action in parser()._actions if action.choices and command in action.choices)
    assert commands.choices is not None
    assert all(action.help for action in commands.choices[command]._actions)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "no_such_bundle", "{root}", "{root}/out"], "bundle must be"),
        (["explain", "pancreas_ct_unoise", "{root}/nothing", "{root}/out"], "nothing"),
        (["explain", "pancreas_ct_unoise", "{root}/scan.nii", "{root}/out", "--device", "gpu9"], "device must be"),
        (["explain", "pancreas_ct_unoise", "{root}/scan.nii", "{root}/out", "--methods", "magic"], "method must be"),
        (["explain", "pancreas_ct_unoise", "{root}/scan.nii", "{root}/out", "--part", "3/2"], "part must be K/N"),
        (["explain", "pancreas_ct_unoise", "{root}", "{root}/../{root.name}"], "another folder than INPUT"),
        (["report", "{root}/nothing"], "cohort.csv"),
        (["render", "{root}/scan.nii", "{root}/scan.nii", "{root}/out.jpg"], "OUTPUT must end in .png"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.nii").write_bytes(b"")
    assert main([argument.format(root=tmp_path) for argument in arguments]) == Exit.USAGE
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "run.json").exists()


def test_an_output_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scan.nii").write_bytes(b"")
    arguments = ["explain", "pancreas_ct_unoise", str(tmp_path / "scan.nii"), str(tmp_path / "out"), "--device", "cpu"]
    with claimed(tmp_path / "out"):
        assert main(arguments) == Exit.REFUSED
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_sigterm_ends_it_as_ctrl_c_does(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from unoise_monai.cli import doctor\n"
        "from unoise_monai.cli.main import main\n"
        "doctor.diagnose = lambda bundles: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(['doctor']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == Exit.INTERRUPTED, ended.stderr
    assert "start again to go on" in ended.stderr
    assert signal.getsignal(signal.SIGTERM) is not None
