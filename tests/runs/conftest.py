"""A small cohort on an oblique, anisotropic, left-handed grid, and a bundle whose networks need no training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_bundle import CONFIG, PHANTOMS, write_small_bundle

from unoise_monai.bundle import Bundle, load_bundle
from unoise_monai.data.cases import Case
from unoise_monai.data.finding import find_cases
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs.settings import Settings, settings_of

PLAIN = {"pictures": []}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled cases and an unlabelled one, as a Decathlon folder."""
    return write_phantom_cohort(
        tmp_path_factory.mktemp("cohort") / "phantoms",
        count=3,
        test_count=1,
        **{**PHANTOMS, "size": (20, 18, 16), "spacing_mm": (15.0, 16.0, 18.0)},
    )


@pytest.fixture
def cases(folder: Path) -> list[Case]:
    return find_cases(folder)


@pytest.fixture
def case(cases: list[Case]) -> Case:
    """One with a label."""
    return next(case for case in cases if case.label is not None)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIG.replace("spacing_mm: [3.0, 3.0, 3.0]", "spacing_mm: [16.0, 16.0, 16.0]")
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "tiny", config, seed=2)


@pytest.fixture
def make_bundle(bundle_folder: Path) -> Callable[..., Bundle]:
    """The bundle with changes of its configuration."""

    def make(**changes: Any) -> Bundle:
        return load_bundle(bundle_folder, "cpu", trusted=True, changes=changes)

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle(**PLAIN)


@pytest.fixture
def settings(bundle: Bundle) -> Callable[..., Settings]:
    """Those of `bundle`, with other values."""

    def make(**values: Any) -> Settings:
        return replace(settings_of(bundle, PLAIN), **values)

    return make
