"""``unoise doctor`` tells what the diagnosis found."""

import json

import pytest

from unoise_monai.cli import doctor
from unoise_monai.cli.main import main
from unoise_monai.report.doctor import Diagnosis, Finding

GOOD = Finding("versions", "torch", "2.13.0")
BAD = Finding("bundles", "x", "no weights", ok=False, advice="train them")


@pytest.mark.parametrize(("findings", "code"), [((GOOD,), 0), ((GOOD, BAD), 1)])
def test_its_lines_and_status(
    findings: tuple[Finding, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda bundles: Diagnosis(findings))
    assert main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines() == Diagnosis(findings).lines
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_a_bundle_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
