"""The report in a real browser, from disk: it sorts, filters, draws, and shows right as right."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from outputs import FAILED, ODD, write_case, write_output, write_record
from PIL import Image

from unoise_monai.report.cases import page_name
from unoise_monai.report.site import write_site

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("ipyniivue", reason="the viewer's package is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found")
# Software rendering: no machine that tests needs a graphics card.
OPTIONS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
MARKER = (16, 15, 14)
"""Voxels, of 20, that a marker lies at in each of the cases: to the patient's right, front and head."""


def write_markers(output: Path) -> dict[str, Path]:
    """Two cases of one scene, a bright block at the patient's right, front and head; one file runs to the left."""
    scans = {}
    for name, side in (("marker_right", 1), ("marker_left", -1)):
        voxels = np.zeros((20, 20, 20), dtype=np.float32)
        voxels[tuple(slice(at - 1, at + 2) for at in MARKER)] = 1
        voxels = voxels[::side].copy()
        affine = np.array([[2.0 * side, 0, 0, -1 - 19 * side], [0, 2, 0, -20], [0, 0, 2, -20], [0, 0, 0, 1]])
        scan = nib.Nifti1Image(100 * voxels + np.indices(voxels.shape).sum(axis=0), affine)
        nib.save(scan, output / f"{name}.nii.gz")
        write_case(output, name, scan, {"importance": voxels}, np.zeros(voxels.shape, np.uint8), pictures=False)
        write_record(output, name)
        scans[name] = output / f"{name}.nii.gz"
    return scans


@pytest.fixture(scope="module")
def report(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output, markers = (tmp_path_factory.mktemp(name) for name in ("browser", "markers"))
    index = write_site(output, write_output(output, cohort), progress=False)
    shutil.copytree(write_site(markers, write_markers(markers), progress=False).parent, index.parent / "markers")
    return index.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must not say a word, open a dialogue, or ask anything of a network."""
    context = browser.new_context(viewport={"width": 900, "height": 450}, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: re.match("file:|blob:|data:", asked.url) or complaints.append(asked.url))
    yield page
    context.close()
    # Drivers without a graphics card warn of reading pixels back; that is the test's own doing.
    assert [said for said in complaints if "GPU stall due to ReadPixels" not in said] == []


def column(page: Any, key: str) -> list[str]:
    """The shown cells of a column, from the top."""
    keys = page.eval_on_selector_all("#cases thead th", "heads => heads.map(head => head.dataset.key)")
    script = f"rows => rows.filter(row => !row.hidden).map(row => row.cells[{keys.index(key)}].innerText.trim())"
    return page.eval_on_selector_all("#cases tbody tr", script)


def pixels(page: Any) -> np.ndarray:
    """What the viewer shows once it has drawn, ``(H, W, 3)``."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.asarray(Image.open(io.BytesIO(page.locator("#viewer canvas").screenshot())).convert("RGB")).astype(float)


def changes(page: Any, before: np.ndarray) -> bool:
    """Whether the viewer soon shows something else, without a hand on it."""
    return any(np.abs(pixels(page) - before).max() > 30 for _ in range(50))


def open_viewer(page: Any, file: Path) -> None:
    page.goto(file.as_uri())
    page.get_by_role("button", name="Open the 3-D viewer").click()
    page.wait_for_selector("#viewer[data-state]", timeout=60_000)
    assert page.get_attribute("#viewer", "data-state") == "ready", page.inner_text("#viewer")


def slide(page: Any, name: str, value: float) -> None:
    page.fill(f"#viewer input[name={name}]", str(value))


def show(page: Any, view: str) -> None:
    page.check(f"#viewer input[name=view][value={view}]", force=True)


def test_numbers_sort_as_numbers(page: Any, report: Path) -> None:
    page.goto((report / "index.html").as_uri())
    assert column(page, "seconds") == ["-", "9.500", "10.2", "100", "-"]
    for expected, order in ((["100", "10.2", "9.500"], "descending"), (["9.500", "10.2", "100"], "ascending")):
        page.locator("th[data-key=seconds] button").click()
        assert column(page, "seconds") == [*expected, "-", "-"]
        assert page.get_attribute("th[data-key=seconds]", "aria-sort") == order
    page.locator("th[data-key=case] button").press("Enter")
    names = column(page, "case")
    assert names == sorted(names, key=str.lower)
    assert page.get_attribute("th[data-key=seconds]", "aria-sort") is None


def test_filters(page: Any, report: Path) -> None:
    page.goto((report / "index.html").as_uri())
    names = column(page, "case")
    page.get_by_label("Search").fill("PHANTOM 002")
    assert column(page, "case") == ["phantom_002"]
    page.get_by_label("Search").fill("ends early")
    assert column(page, "case") == [FAILED]
    assert page.inner_text(".count") == f"1 of {len(names)} cases"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("n => document.querySelector('.count').textContent.startsWith(n + ' of')", arg=len(names))
    page.get_by_label("Status").select_option("failed")
    assert column(page, "status")[0].startswith("failed")
    page.get_by_label("Status").select_option("")
    page.get_by_label("Column", exact=True).select_option(label="Dice")
    page.get_by_label("at least").fill("0.5")
    assert column(page, "dice") == ["0.900", "0.850"]
    page.get_by_label("at most").fill("0.87")
    assert column(page, "dice") == ["0.850"]
    page.get_by_label("at least").fill("7")
    assert column(page, "case") == []
    assert page.is_visible(".empty")


def test_columns_are_chosen(page: Any, report: Path) -> None:
    page.goto((report / "index.html").as_uri())
    head = page.locator("th[data-key=importance_mean]")
    assert not head.is_visible()
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("importance, mean").check()
    assert head.is_visible()
    page.get_by_label("importance, mean").uncheck()
    assert not head.is_visible()


def test_pages_lead_to_each_other_and_pictures_load(page: Any, report: Path) -> None:
    page.goto((report / "index.html").as_uri())
    page.get_by_role("link", name="phantom_001", exact=True).click()
    for _ in range(2):
        assert page.locator("main img").count() == 3
        page.locator("main img").last.scroll_into_view_if_needed()
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.get_by_role("link", name="Next").click()
    assert page.title().startswith("phantom_003")
    page.get_by_role("link", name="All cases").click()
    assert page.locator("#cases").count() == 1


def test_names_are_not_run(page: Any, report: Path) -> None:
    page.goto((report / f"cases/{page_name(ODD)}.html").as_uri())
    assert ODD in page.inner_text("h1")


def test_viewer_draws_and_sliders_change_it(page: Any, report: Path) -> None:
    open_viewer(page, report / "cases/phantom_001.html")
    before = pixels(page)
    assert before.std() > 10
    moves = (("map-opacity", 0), ("seg-opacity", 0), ("scan-black", 100), ("scan-black", -150), ("scan-opacity", 0.2))
    for name, value in moves:
        slide(page, name, value)
        after = pixels(page)
        assert np.abs(after - before).max() > 30, name
        before = after
    page.get_by_role("button", name="Reset").click()
    slide(page, "seg-opacity", 0)
    colourful = []
    for threshold in (0.05, 0.5, 0.95):
        slide(page, "map-threshold", threshold)
        colourful.append(int((np.ptp(pixels(page), axis=2) > 60).sum()))
    assert colourful[0] > colourful[1] > colourful[2]
    slide(page, "map-threshold", 0.05)
    before = pixels(page)
    assert page.text_content(".map-title") == "importance"
    page.select_option("#viewer select[name=map]", "saliency")
    page.get_by_text("saliency, share of its 99.9th percentile", exact=True).wait_for()
    assert changes(page, before)


def test_volume_rendering_turns_and_is_cut(page: Any, report: Path) -> None:
    open_viewer(page, report / "cases/phantom_001.html")
    show(page, "volume")
    whole = pixels(page)
    assert whole.std() > 10
    page.locator("#viewer canvas").press("ArrowLeft")
    turned = pixels(page)
    assert np.abs(turned - whole).max() > 30
    slide(page, "cut-depth", 0.5)
    cut = pixels(page)
    assert np.abs(cut - turned).max() > 30
    page.select_option("#viewer select[name=cut-side]", "back")
    assert np.abs(pixels(page) - cut).max() > 30


@pytest.mark.parametrize("name", ["marker_right", "marker_left"])
def test_right_is_right(page: Any, report: Path, name: str) -> None:
    open_viewer(page, report / f"markers/cases/{name}.html")
    canvas = page.locator("#viewer canvas")
    slide(page, "map-opacity", 1)
    slide(page, "scan-opacity", 0.2)
    # The marker lies at 12, 10 and 8 mm to the right, the front and the head.
    assert page.inner_text(".place").startswith("12 mm R, 10 mm A, 8 mm S · scan ")
    places = (("axial", "RLAP", 12, 10), ("coronal", "RLSI", 12, 8), ("sagittal", "APSI", 10, 8))
    for view, letters, side, top in places:
        show(page, view)
        shown = pixels(page)
        assert "".join(page.locator(".stage b").all_inner_texts()) == letters
        # Where the map's yellow is: to the left of the middle, and above it, as far as the millimetres say.
        rows, columns = np.nonzero(shown[..., 0] - shown[..., 2] > 60)
        height, width = shown.shape[:2]
        mm = min(height, width) / 40
        assert columns.mean() == pytest.approx(width / 2 - (side + 1) * mm, abs=1.5 * mm), view
        assert rows.mean() == pytest.approx(height / 2 - (top + 1) * mm, abs=1.5 * mm), view
        canvas.click(position={"x": width / 2 + side * mm, "y": float(rows.mean())})
        far = "L" if view != "sagittal" else "P"
        assert re.search(rf"\d+ mm {far}", page.inner_text(".place")), view
        assert "importance 0 " in page.inner_text(".place")
        canvas.click(position={"x": float(columns.mean()), "y": float(rows.mean())})
        assert "12 mm R, 10 mm A, 8 mm S" in page.inner_text(".place"), view
        assert "importance 1 " in page.inner_text(".place")


def test_the_keyboard_alone_will_do(page: Any, report: Path) -> None:
    page.goto((report / "cases/phantom_001.html").as_uri())
    page.get_by_role("button", name="Open the 3-D viewer").press("Enter")
    page.wait_for_selector("#viewer[data-state=ready]", timeout=60_000)
    page.locator("#viewer input[value=all]").press("ArrowRight")
    assert page.is_checked("#viewer input[value=axial]")
    page.locator("#viewer canvas").press("Tab")
    assert page.evaluate("document.activeElement.name") == "view"
    places = [page.inner_text(".place")]
    for key in ("ArrowLeft", "ArrowUp", "PageUp"):
        page.locator("#viewer canvas").press(key)
        places.append(page.inner_text(".place"))
    assert len(set(places)) == 4
    for key in ("ArrowRight", "ArrowDown", "PageDown"):
        page.locator("#viewer canvas").press(key)
    assert page.inner_text(".place") == places[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(page: Any, report: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    found = []
    for file, selectors in (
        ("index.html", (".tile .note", ".chip.done", ".chip.failed", ".reason", "thead button", "tbody th a", ".over")),
        ("cases/phantom_001.html", ("figcaption", ".facts dt", ".start", ".chart text", "footer")),
    ):
        page.goto((report / file).as_uri())
        found += [(selector, contrast(page, selector)) for selector in selectors]
    # WCAG 2.1 AA.
    assert [(selector, ratio) for selector, ratio in found if ratio < 4.5] == []


def contrast(page: Any, selector: str) -> float:
    """Of a text to what lies behind it, as WCAG 2.1 defines it."""
    colours = page.eval_on_selector(
        selector,
        """element => {
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            const style = getComputedStyle(element);
            return [element.closest('svg') ? style.fill : style.color, getComputedStyle(behind).backgroundColor];
        }""",
    )

    def luminance(colour: str) -> float:
        parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_a_thousand_cases_open_and_sort_quickly(page: Any, tmp_path: Path) -> None:
    for number in range(1000):
        write_record(tmp_path, f"case_{number:04d}", {"dice": (number * 7919) % 1000 / 1000})
    page.goto(write_site(tmp_path, viewer=False, progress=False).as_uri())
    seconds = page.evaluate(
        "() => { const start = performance.now(); document.querySelector('th[data-key=dice] button').click();"
        " document.body.offsetHeight; return (performance.now() - start) / 1000; }"
    )
    assert column(page, "dice")[:2] == ["0.999", "0.998"]
    # Far above what a busy machine takes, and far below what a slow way of sorting would.
    assert seconds < 30


def test_a_missing_volume_is_said(report: Path, tmp_path: Path, browser: Any) -> None:
    copy = tmp_path / "report"
    shutil.copytree(report, copy)
    (copy / "volumes/phantom_001.seg.js").unlink()
    page = browser.new_page()
    page.goto((copy / "cases/phantom_001.html").as_uri())
    page.locator(".start").click()
    page.wait_for_selector("#viewer[data-state=failed]")
    assert page.inner_text(".stage") == "The viewer could not start: ../volumes/phantom_001.seg.js is missing."
    page.close()
