"""Options are read as they are meant."""

import argparse

import pytest

from unoise_monai.cli.main import parser


def options(*more: str) -> argparse.Namespace:
    return parser().parse_args(["explain", "bundle", "in", "out", *more])


def test_the_defaults() -> None:
    chosen = options()
    assert (chosen.quantity, chosen.methods, chosen.images, chosen.fast) == ("importance", "", True, False)
    assert (chosen.device, chosen.precision, chosen.workers, chosen.engine) == ("auto", "auto", 1, "local")
    assert (chosen.part, chosen.overwrite, chosen.anonymise, chosen.trust_bundle) == (None, False, False, False)


def test_a_part() -> None:
    assert options("--part", "2/8").part == (2, 8)


@pytest.mark.parametrize("text", ["2", "2/", "a/b", "1/2/3"])
def test_what_is_no_part(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--part", text)
    assert f"must be K/N, such as 2/8, got {text!r}" in capsys.readouterr().err


def test_no_images() -> None:
    assert options("--no-images").images is False
