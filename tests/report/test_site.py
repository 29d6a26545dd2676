"""The report is whole, stands by itself, shows no patient and runs no one's script."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from outputs import FAILED, ODD, REASON, write_output, write_table

from unoise_monai.report.site import write_site
from unoise_monai.report.site_cases import page_name


class Page(HTMLParser):
    """Links, tags, classes and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.links += [value or "" for key, value in attrs if key in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def output(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ipyniivue", reason="the viewer's package is not installed")
    folder = tmp_path_factory.mktemp("DOE^JANE")
    scans = write_output(folder, cohort)
    (folder / "run.json").write_text(json.dumps({"device": "cpu", "command": f"unoise explain {cohort}"}))
    private = {name: folder / f"DOE_JANE_{name}.nii.gz" for name in list(scans)[:2]}
    for name, path in private.items():
        image = nib.load(scans[name])
        image.header["descrip"] = b"DOE^JANE 1970-01-01"
        nib.save(image, path)
    assert write_site(folder, private, progress=False) == folder / "report/index.html"
    return folder


def pages(output: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted((output / "report").rglob("*.html"))}


def test_every_link_leads_to_a_file_of_the_report(output: Path) -> None:
    found = pages(output)
    assert len(found) == 1 + 5
    for path, page in found.items():
        for link in page.links:
            if link not in ("data:,", "#main"):
                target = (path.parent / link).resolve()
                assert target.is_file(), (path.name, link)
                assert target.is_relative_to((output / "report").resolve())


def test_nothing_is_fetched_from_elsewhere(output: Path) -> None:
    for path in (output / "report").rglob("*.*"):
        if path.suffix in (".html", ".css") or path.name in ("table.js", "viewer.js"):
            assert "//" not in path.read_text("utf-8").replace("// ", ""), path.name


def test_the_layers_that_a_page_names_are_there(output: Path) -> None:
    for path, page in pages(output).items():
        for found in page.attributes:
            for layer in json.loads(found.get("data-layers") or "[]"):
                assert (path.parent / layer["file"]).is_file()
                assert layer["lowest"] <= layer["highest"]


def test_texts_are_never_markup(output: Path) -> None:
    index, case, failed = (
        Page(output / "report" / path)
        for path in ("index.html", f"cases/{page_name(ODD)}.html", f"cases/{page_name(FAILED)}.html")
    )
    for page in (index, case):
        assert "alert(1)" not in " ".join(page.texts).replace(ODD, "")
        assert any(ODD in text for text in page.texts)
    assert index.tags.count("script") == 1
    for page in (index, failed):
        assert any(REASON in text for text in page.texts)
        assert "b" not in page.tags


def test_the_index_has_a_row_a_case(output: Path) -> None:
    index = Page(output / "report/index.html")
    assert [found["data-status"] for found in index.attributes if "data-status" in found] == ["done"] * 3 + [
        "failed",
        "done",
    ]
    assert sum(found.get("loading") == "lazy" for found in index.attributes) == 3
    assert all(found.get("alt") for tag, found in zip(index.tags, index.attributes, strict=True) if tag == "img")
    text = " ".join(index.texts)
    assert "0.900" in text
    assert "ef" * 32 not in text


def test_a_case_s_page_holds_all_of_it(output: Path, cohort: Path) -> None:
    page = Page(next(iter(sorted((output / "report/cases").glob("phantom_0*.html")))))
    text = " ".join(page.texts)
    for words in (
        "Projections",
        "Slices",
        "saliency mip",
        "Organs",
        "liver",
        "ef" * 32,
        "How important are the voxels?",
    ):
        assert words in text
    assert page.tags.count("polyline") == 4


def test_no_patient_and_no_path_reaches_the_report(output: Path) -> None:
    for path in (output / "report").rglob("*"):
        assert "JANE" not in path.name
        if path.is_file() and path.name != "niivue.js":
            content = path.read_bytes()
            assert b"DOE^JANE" not in content, path.name
            assert b"DOE_JANE" not in content, path.name
            assert str(output).encode() not in content, path.name
    scripts = list((output / "report/volumes").glob("*.js"))
    assert len([path for path in scripts if path.stem.endswith("_scan")]) == 2
    for path in scripts:
        packed = json.loads(path.read_text().removeprefix("unoise.deliver(").removesuffix(");\n").partition(", ")[2])
        assert b"DOE" not in gzip.decompress(base64.b64decode(packed))


def test_a_missing_scan_is_said(output: Path) -> None:
    named = {path.stem: " ".join(page.texts) for path, page in pages(output).items()}
    assert ["without it" in named[f"phantom_00{number}"] for number in (1, 2, 3)] == [False, False, True]


def test_written_again_it_is_the_same_without_what_is_gone(output: Path, cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output, folder, ignore=shutil.ignore_patterns("report"))
    write_site(folder, progress=False)
    first = {path: path.read_bytes() for path in (folder / "report").rglob("*.*")}
    (folder / "report/cases/notes").mkdir()
    (folder / "report/mine.txt").touch()
    write_site(folder, progress=False)
    again = {path: path.read_bytes() for path in (folder / "report").rglob("*.*")}
    assert again.pop(folder / "report/mine.txt") == b""
    assert again == first
    rows = [{"case": "phantom_001", "status": "done"}]
    for table in ("cohort", "failures", "organs"):
        (folder / f"{table}.csv").unlink()
    write_table(folder / "cohort.csv", rows)
    write_site(folder, viewer=False, progress=False)
    names = [path.name for part in ("cases", "volumes", "pictures") for path in (folder / "report" / part).glob("*.*")]
    assert sorted(names) == ["phantom_001.html"] + [
        f"phantom_001_{end}.jpg" for end in ("mip", "mip_thumbnail", "montage", "saliency_mip")
    ]


def test_broken_files_do_not_end_it(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output, folder, ignore=shutil.ignore_patterns("report"))
    for path in (folder / "phantom_001").iterdir():
        path.write_bytes(b"broken")
    write_site(folder, progress=False)
    page = Page(folder / "report/cases/phantom_001.html")
    assert "img" not in page.tags
    assert any("could not be read" in text for text in page.texts)


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"output must hold cohort.csv"):
        write_site(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_cases(tmp_path: Path) -> None:
    names = [f"case_{number:04d}" for number in range(1000)]
    write_table(tmp_path / "cohort.csv", [{"case": name, "status": "done", "dice": 0.5} for name in names])
    index = write_site(tmp_path, viewer=False, progress=False)
    assert index.stat().st_size < 2_000_000
    assert len(list((tmp_path / "report/cases").iterdir())) == 1000
    assert np.isclose(float(Page(index).texts.count("0.500")), 1001, atol=1)
