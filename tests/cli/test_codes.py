"""The exit statuses are those that the docs name."""

import re
from pathlib import Path

from unoise_monai.cli.codes import Exit

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cohort.md"


def test_the_docs_have_a_row_for_each() -> None:
    rows = re.findall(r"^\| (\d+) \|", DOCS.read_text(), flags=re.MULTILINE)
    assert list(map(int, rows)) == [code.value for code in Exit]
