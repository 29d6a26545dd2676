"""Files that are damaged, absurd or hostile end in a clear refusal or a right result, at once and in little memory."""

import signal
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import bad_texts
import bad_volumes
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from bad_volumes import Bad
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.transforms import Invertd
from nibabel.affines import apply_affine, from_matvec

from unoise_monai.data.headers import CaseError, check_header
from unoise_monai.data.reading import LoadCased
from unoise_monai.data.transforms import SegmentationTask, preprocessing
from unoise_monai.inference.explain import Explainer
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter

TASK = SegmentationTask("MR", ("background", "organ"), (1.0, 1.0, 1.0), (16, 16, 16))
LOAD = LoadCased(["image"], labels=2, spacing_mm=TASK.spacing_mm)
SECONDS = 60
"""For one file."""
EXAMPLES = 150
FAMILIES = (
    bad_volumes.cut_off,
    bad_volumes.no_volumes,
    bad_volumes.claims,
    bad_volumes.voxels,
    bad_volumes.affines,
    bad_volumes.flips,
    bad_volumes.specials,
    bad_texts.texts,
)
SAMPLE = [bad for family in FAMILIES for bad in [each for each in family() if each.refused][::40]]
CORPUS = [bad for family in FAMILIES for bad in family()]


class Hang(BaseException):
    """No `Exception`: those, a reader's time-out among them, are taken for a bad file's."""


@contextmanager
def no_hang(seconds: float = SECONDS) -> Iterator[None]:
    """Ends what takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"a file took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def naive(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What nibabel, or SimpleITK for the formats that it does not know, makes of a file: voxels and RAS affine."""
    if path.suffix in (".nii", ".gz", ".hdr"):
        image = nib.load(path)
        return np.asarray(image.dataobj), image.affine
    image = SimpleITK.ReadImage(str(path))
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps = np.diag([-1.0, -1.0, 1.0])
    return SimpleITK.GetArrayFromImage(image).T, from_matvec(lps @ axes, lps @ image.GetOrigin())


def read(path: Path) -> str:
    """How the loading chain refuses a file; empty where its result is right."""
    try:
        with no_hang():
            volume = LOAD({"case": "scan", "image": str(path)})["image"]
            item = preprocessing(TASK, with_label=False)({"case": "scan", "image": str(path)})
    except CaseError as error:
        return str(error)
    voxels, affine = naive(path)
    np.testing.assert_array_equal(volume[0].numpy(), voxels.astype(np.float32))
    np.testing.assert_allclose(volume.affine.numpy(), affine, rtol=1e-6, atol=1e-5)
    image = item["image"].as_tensor()
    assert bool(image.isfinite().all())
    assert image.ndim == 4
    assert min(image.shape[1:]) >= 2
    assert float(image.std()) > 0
    return ""


@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: bad.name)
def test_corpus(bad: Bad, tmp_path: Path) -> None:
    path = bad.write(tmp_path)
    reason = read(path)
    assert bad.refused is None or bool(reason) == bad.refused, reason
    if reason:
        assert "\n" not in reason.replace(str(path), "")
        assert path.name in reason
    elif bad.name.endswith("flipped, gzip"):
        # The checksum lets nothing through but what was there.
        np.testing.assert_array_equal(naive(path)[0], bad_volumes.VOXELS)


@pytest.mark.parametrize("bad", SAMPLE, ids=lambda bad: bad.name)
def test_every_route_refuses_alike(bad: Bad, tmp_path: Path) -> None:
    path = bad.write(tmp_path)
    network = ExplainedSegmenter(UNet(3, 1, 2, 2, 2), UNet(3, 1, 1, 2, 2))
    explainer = Explainer(network, preprocessing(TASK, with_label=False))
    item = {"image": str(path)}
    messages = set()
    for route in (LOAD, preprocessing(TASK), lambda item: explainer(item["image"])):
        with pytest.raises(CaseError) as caught, no_hang():
            route(item)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_sheared_volumes_are_resampled_right(tmp_path: Path) -> None:
    """A ramp in space is the same ramp on the network's grid, and on the way back."""
    shear = bad_volumes.TURN @ np.array([[1, 0.4, 0], [0, 1.1, 0.3], [0, 0, 1.5]])
    affine = from_matvec(shear, [5.0, -3.0, 7.0])
    shape = (20, 18, 16)
    slope = np.array([3.0, 1.5, -2.0])
    ramp = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) @ slope
    (tmp_path / "scan.nii").write_bytes(bad_volumes.nifti(ramp.astype(np.float32), affine))
    ct = replace(TASK, ct_window_hu=(-1000.0, 1000.0))
    chain = preprocessing(ct, with_label=False)
    item = chain({"case": "scan", "image": str(tmp_path / "scan.nii")})
    image = item["image"]
    mm = apply_affine(image.affine.numpy(), np.moveaxis(np.indices(image.shape[1:]), 0, -1))
    source = apply_affine(np.linalg.inv(affine), mm)
    inside = ((source >= 0) & (source <= np.array(shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(image[0].numpy()[inside], (mm @ slope / 500)[inside], atol=2e-3)
    item["pred"] = image.clone()
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == (1, *shape)
    middle = (slice(6, -6),) * 3
    np.testing.assert_allclose(back[0].numpy()[middle], ramp[middle] / 500, atol=2e-3)


def test_no_claim_is_believed(tmp_path: Path) -> None:
    """Terabytes in the header, a thousand bytes in the file: nothing of that size is asked for."""
    for number, bad in enumerate([*bad_volumes.claims(), *bad_texts.texts()]):
        if not bad.refused:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        path = bad.write(folder)
        tracemalloc.start()
        # Of a compressed file, loading alone tells how much is in it.
        with no_hang(), suppress(CaseError):
            check_header(path, TASK.spacing_mm)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6, bad.name


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.dictionaries(st.integers(0, 351), st.binary(min_size=1, max_size=8), min_size=1, max_size=4),
    packed=st.booleans(),
)
def test_any_header(tmp_path: Path, changes: dict[int, bytes], packed: bool) -> None:
    bad = list(bad_volumes.both("any", bad_volumes.put(bad_volumes.nifti(), changes), None))[packed]
    read(bad.write(tmp_path))


def test_a_hang_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through what catches every error of a reader."""
    path = bad_volumes.written(tmp_path, "scan.nii")
    monkeypatch.setattr(nib, "load", lambda path: time.sleep(10))
    with pytest.raises(Hang), no_hang(0.05):
        LOAD({"case": "scan", "image": str(path)})


def test_there_are_enough() -> None:
    assert len({bad.name for bad in CORPUS}) == len(CORPUS)
    assert len(CORPUS) + EXAMPLES >= 300
