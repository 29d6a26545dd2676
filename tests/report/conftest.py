"""A cohort of tiny phantoms on an oblique, anisotropic, left-handed grid."""

from pathlib import Path

import pytest

from unoise_monai.phantoms import write_phantom_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(
        tmp_path_factory.mktemp("report") / "phantoms",
        count=3,
        test_count=1,
        size=(20, 18, 16),
        spacing_mm=(15.0, 16.0, 18.0),
        oblique_degrees=12.0,
        left_handed=True,
        progress=False,
    )
