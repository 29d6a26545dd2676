"""The report is whole, stands by itself, shows no patient and runs no one's script."""

import base64
import gzip
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from outputs import FAILED, HASH, ODD, REASON, write_output, write_record

from unoise_monai.handlers.savers import map_quantity
from unoise_monai.report import volumes
from unoise_monai.report.cases import page_name
from unoise_monai.report.site import write_site


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


def copy(output: Path, folder: Path) -> Path:
    return Path(shutil.copytree(output, folder / "output", ignore=shutil.ignore_patterns("report")))


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
    assert [found["data-status"] for found in index.attributes if "data-status" in found] == ["done"] * 4 + ["failed"]
    assert sum(found.get("loading") == "lazy" for found in index.attributes) == 3
    assert all(found.get("alt") for tag, found in zip(index.tags, index.attributes, strict=True) if tag == "img")
    text = " ".join(index.texts)
    assert "0.900" in text
    assert HASH not in text


def test_a_case_s_page_holds_all_of_it(output: Path, cohort: Path) -> None:
    page = Page(next(iter(sorted((output / "report/cases").glob("phantom_0*.html")))))
    text = " ".join(page.texts)
    for words in ("Projections", "Slices", "saliency mip", "Organs", "liver", HASH, "How important are the voxels?"):
        assert words in text
    assert page.tags.count("svg") == 2


def test_no_patient_and_no_path_reaches_the_report(output: Path) -> None:
    for path in (output / "report").rglob("*"):
        assert "JANE" not in path.name
        if path.is_file() and path.name != "niivue.js":
            content = path.read_bytes()
            assert b"DOE^JANE" not in content, path.name
            assert b"DOE_JANE" not in content, path.name
            assert str(output).encode() not in content, path.name
    scripts = list((output / "report/volumes").glob("*.js"))
    assert len([path for path in scripts if path.stem.endswith(".scan")]) == 2
    for path in scripts:
        packed = json.loads(path.read_text().removeprefix("unoise.deliver(").removesuffix(");\n").partition(", ")[2])
        assert b"DOE" not in gzip.decompress(base64.b64decode(packed))


def test_a_missing_scan_is_said(output: Path) -> None:
    named = {path.stem: " ".join(page.texts) for path, page in pages(output).items()}
    assert ["without it" in named[f"phantom_00{number}"] for number in (1, 2, 3)] == [False, False, True]


def test_written_again_it_is_the_same_without_what_is_gone(output: Path, cohort: Path, tmp_path: Path) -> None:
    folder = copy(output, tmp_path)
    write_site(folder, progress=False)
    first = {path: path.read_bytes() for path in (folder / "report").rglob("*.*")}
    (folder / "report/cases/notes").mkdir()
    (folder / "report/mine.txt").touch()
    write_site(folder, progress=False)
    again = {path: path.read_bytes() for path in (folder / "report").rglob("*.*")}
    assert again.pop(folder / "report/mine.txt") == b""
    assert again == first
    shutil.rmtree(folder / ".unoise")
    write_record(folder, "phantom_001")
    write_site(folder, viewer=False, progress=False)
    names = [path.name for part in ("cases", "volumes", "pictures") for path in (folder / "report" / part).glob("*.*")]
    assert sorted(names) == ["phantom_001.html"] + [
        f"phantom_001.{end}.jpg" for end in ("mip", "mip.thumbnail", "montage", "saliency_mip")
    ]


def test_no_two_cases_share_a_file(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    for case, method in (("p1", "guided_grad_cam"), ("p1_guided", "grad_cam")):
        (folder / case).mkdir(parents=True)
        for end in ("seg.nii.gz", "importance.nii.gz", "mip.png"):
            shutil.copy(output / f"phantom_001/phantom_001_{end}", folder / case / f"{case}_{end}")
        for end in ("saliency.nii.gz", "saliency_mip.png"):
            target = end.replace("saliency", method)
            shutil.copy(output / f"phantom_001/phantom_001_{end}", folder / case / f"{case}_{target}")
    shutil.copy(output / "phantom_001/phantom_001_mip.png", folder / "p1/p1_mip_thumbnail.png")
    for case in ("p1", "p1_guided"):
        write_record(folder, case)
    write_site(folder, progress=False)
    volumes, pictures = (list((folder / "report" / part).iterdir()) for part in ("volumes", "pictures"))
    # A ground, two maps and a segmentation; two pictures and a thumbnail; and one case's odd picture.
    assert len(volumes) == 2 * 4
    assert len(pictures) == 2 * 3 + 1


@pytest.mark.parametrize(("quantity", "charted"), [("tolerance", True), ("sigma", False)])
def test_other_quantities(quantity: str, charted: bool, output: Path, tmp_path: Path) -> None:
    source, folder = output / "phantom_001", tmp_path / "output"
    (folder / "a").mkdir(parents=True)
    image = nib.load(source / "phantom_001_importance.nii.gz")
    values = map_quantity(image.get_fdata(), quantity)
    nib.save(nib.Nifti1Image(values, image.affine), folder / f"a/a_{quantity}.nii.gz")
    for key in ("seg", "saliency"):
        shutil.copy(source / f"phantom_001_{key}.nii.gz", folder / f"a/a_{key}.nii.gz")
    write_record(folder, "a")
    write_site(folder, progress=False)
    page, plain = (tables(path) for path in (folder / "report/cases/a.html", output / "report/cases/phantom_001.html"))
    assert len(page) == (2 if charted else 0)
    # The most important voxels hold the segmentation as they did, though their tolerance is the lowest.
    for values, expected in zip(page, plain if charted else (), strict=True):
        # Of the least important voxels, some are alike after rounding.
        np.testing.assert_allclose(values[:6], expected[:6], atol=2)
    page = Page(folder / "report/cases/a.html")
    title = {"tolerance": "noise tolerance", "sigma": "sigma, share of its 99.9th percentile"}[quantity]
    assert page.texts[page.texts.index("View") :].count(title) == 1


def tables(path: Path) -> list[np.ndarray]:
    """The values of each chart of a page."""
    found = re.findall(r"As a table.*?<tbody>(.*?)</tbody>", path.read_text("utf-8"), re.DOTALL)
    rows = [[re.findall(r">([\d.]+)<", row) for row in text.split("</tr>")[:-1]] for text in found]
    return [np.array(values, dtype=float) for values in rows]


def test_classes_are_named_where_a_case_lacks_the_last(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output / "phantom_001", folder / "phantom_001")
    write_record(folder, "phantom_001", {"volume_ml_pancreas": 1.0, "volume_ml_tumour": 0.0})
    write_site(folder, progress=False)
    page = Page(folder / "report/cases/phantom_001.html")
    classes = [found for found in page.attributes if re.fullmatch(r"class\d", found.get("class") or "")]
    assert len(classes) == 1
    assert "pancreas" in page.texts


def test_scans_are_read_for_known_cases_in_the_viewer_only(
    output: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(output, tmp_path)
    asked: list[Path] = []
    read = volumes.load_volume
    monkeypatch.setattr(volumes, "load_volume", lambda path: (asked.append(path), read(path))[1])
    names = ("phantom_001", "phantom_002", "stranger", FAILED)
    scans = {name: cohort / f"imagesTr/{name}.nii.gz" for name in names}
    write_site(folder, scans, viewer=False, progress=False)
    assert asked == []
    write_site(folder, scans, progress=False)
    assert sorted(asked) == [scans["phantom_001"], scans["phantom_002"]]
    assert len(list((folder / "report/volumes").glob("*.scan.js"))) == 2


def test_broken_files_do_not_end_it(output: Path, tmp_path: Path) -> None:
    folder = copy(output, tmp_path)
    for path in (folder / "phantom_001").iterdir():
        path.write_bytes(b"broken")
    write_site(folder, progress=False)
    page = Page(folder / "report/cases/phantom_001.html")
    assert "img" not in page.tags
    assert any("could not be read" in text for text in page.texts)


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="output must hold the records of a run"):
        write_site(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_cases(tmp_path: Path) -> None:
    names = [f"case_{number:04d}" for number in range(1000)]
    for name in names:
        write_record(tmp_path, name, {"dice": 0.5})
    index = write_site(tmp_path, viewer=False, progress=False)
    assert index.stat().st_size < 2_000_000
    assert len(list((tmp_path / "report/cases").iterdir())) == 1000
    assert np.isclose(float(Page(index).texts.count("0.500")), 1001, atol=1)
