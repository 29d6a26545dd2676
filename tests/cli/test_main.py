"""The ``unoise`` command: its exit status, its help, completion in a shell, and what none of these import."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import unoise_monai
from unoise_monai.cli import Exit
from unoise_monai.cli.main import main, parser
from unoise_monai.runs.records import claimed

COMMANDS = ["explain", "report", "render", "phantom", "doctor"]
HEAVY = {"torch", "monai", "numpy", "matplotlib"}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "cohort.md"


def run(*arguments: str, **variables: str) -> tuple[str, set[str]]:
    """Standard output of ``unoise``, and all that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "unoise_monai.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return ended.stdout, set(re.findall(r"^import time:.*\| +(\S+)$", ended.stderr, flags=re.MULTILINE))


def complete(line: str, answer: Path) -> tuple[str, set[str]]:
    """What a shell is offered at the end of a line, as its own function asks for it, and all that this imported."""
    _, imported = run(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        COMP_TYPE="9",
    )
    return answer.read_text(encoding="utf-8"), imported


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    output, imported = run(*arguments)
    assert output.startswith("unoise-monai 0.1.0\n" if arguments == ["--version"] else "usage: unoise")
    assert "unoise_monai.cli.main" in imported
    assert imported.isdisjoint({*HEAVY, "argcomplete"})


@pytest.mark.parametrize(
    ("line", "offered"), [("unoise ex", "explain "), ("unoise render a b c --style ", "colour\nred")]
)
def test_a_shell_completes_and_imports_nothing_heavy(line: str, offered: str, tmp_path: Path) -> None:
    answer, imported = complete(line, tmp_path / "answer")
    assert answer == offered
    assert "argcomplete" in imported
    assert imported.isdisjoint(HEAVY)


def test_the_package_has_its_names_when_they_are_asked_for() -> None:
    assert {"ExplainedSegmenter", "UNoise", "load_bundle"} <= set(dir(unoise_monai))
    assert all(getattr(unoise_monai, name).__name__.rpartition(".")[2] == name for name in unoise_monai.__all__)
    with pytest.raises(AttributeError, match="module 'unoise_monai' has no attribute 'nothing'"):
        unoise_monai.nothing  # noqa: B018


def test_the_docs_have_a_row_for_each_exit_status() -> None:
    rows = re.findall(r"^\| (\d+) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert list(map(int, rows)) == [code.value for code in Exit]


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nothing"])
    assert caught.value.code == Exit.USAGE
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_help_names_every_command_option_and_exit_status() -> None:
    text = " ".join(parser().format_help().split())
    assert all(f"{code.value} {code.name.lower().replace('_', ' ')}" in text for code in Exit)
    (commands,) = (action for action in parser()._actions if action.choices)
    for command in COMMANDS:
        assert command in text
        assert all(action.help for action in commands.choices[command]._actions)  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "no_such_bundle", "{root}", "{root}/out"], "bundle must be"),
        (["explain", "pancreas_ct_unoise", "{root}/nothing", "{root}/out"], "nothing"),
        (["explain", "pancreas_ct_unoise", "{root}/scan.nii", "{root}/out", "--device", "gpu9"], "device must be"),
        (["explain", "pancreas_ct_unoise", "{root}/scan.nii", "{root}/out", "--part", "3/2"], "part must be K/N"),
        (["explain", "pancreas_ct_unoise", "{root}", "{root}/../{root.name}"], "another folder than INPUT"),
        (["report", "{root}/nothing"], "records of a run"),
        (["render", "{root}/scan.nii", "{root}/scan.nii", "{root}/out.jpg"], "OUTPUT must end in .png"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.nii").write_bytes(b"")
    assert main([argument.format(root=tmp_path) for argument in arguments]) == Exit.USAGE
    assert message in capsys.readouterr().err
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
        "from unoise_monai.cli.main import main\n"
        "from unoise_monai.report import doctor\n"
        "doctor.diagnose = lambda bundles: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(['doctor']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == Exit.INTERRUPTED, ended.stderr
    assert "start again to go on" in ended.stderr
    assert signal.getsignal(signal.SIGTERM) is not None
