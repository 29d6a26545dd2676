"""What the files of a cohort hang on, kept with them, so that one output never mixes two settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unoise_monai.atomic import atomic_path
from unoise_monai.attribution.registry import method_names
from unoise_monai.checks import check_choice
from unoise_monai.cohort.lock import claiming
from unoise_monai.handlers.quantity import QUANTITIES
from unoise_monai.inference.precision import PRECISIONS

RUN_FILE = "run.json"
METHODS = tuple(name for name in method_names() if name != "voxelwise_mean")
"""Those that explain all that is segmented; the mean of voxels' maps is of a region."""


class OtherSettings(ValueError):
    """The output was made with other settings than those asked for."""


@dataclass(frozen=True)
class Settings:
    """All that a case's files hang on, apart from the case and the machine.

    Args:
        bundle: its name.
        bundle_version: as its metadata says.
        weights_sha256: of the weights' file.
        config_sha256: of the configuration that networks and preprocessing come from.
        software: versions of what makes the files.
        number_format: that the precision means on the device.
        quantity: what is written of the importance, one of `QUANTITIES`.
        methods: attribution methods whose maps are written, too.
        images: whether pictures are written.
        fast: on a grid `FAST` times as coarse.
        precision: see `resolve_precision`.
        anonymised: whether cases have hashes for names.

    Raises:
        ValueError: when a quantity, a method or a precision is unknown.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    config_sha256: str
    software: str
    number_format: str = "auto"
    quantity: str = "importance"
    methods: tuple[str, ...] = ()
    images: bool = True
    fast: bool = False
    precision: str = "auto"
    anonymised: bool = False

    def __post_init__(self) -> None:
        check_choice("quantity", self.quantity, tuple(QUANTITIES))
        check_choice("precision", self.precision, PRECISIONS)
        for method in self.methods:
            check_choice("method", method, METHODS)

    @property
    def digest(self) -> str:
        """Differs where anything differs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def claim_output(output: Path, settings: Settings, about: dict[str, Any], overwrite: bool = False) -> None:
    """Write ``run.json`` into a new output; check that an old one was made with the same settings.

    Args:
        output: the folder.
        settings: of this run.
        about: what else ``run.json`` says, such as versions, command and device.
        overwrite: take the output over although its settings differ; cases made with them are done again.

    Raises:
        OtherSettings: when they differ; it names what and both values.
    """
    path = output / RUN_FILE
    now = json.loads(json.dumps(asdict(settings)))
    with claiming(output):
        before = read_run(output).get("settings", {}) if path.is_file() else None
        differing = [name for name in now if before is not None and before.get(name) != now[name]]
        if differing and not overwrite:
            told = "; ".join(f"{name} was {(before or {}).get(name)!r}, now {now[name]!r}" for name in differing)
            raise OtherSettings(
                f"{output} holds results of other settings: {told}. Choose another output, or --overwrite (without "
                "--part)"
            )
        if differing or before is None:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({**about, "settings": now}, indent=1) + "\n")


def read_run(output: Path) -> dict[str, Any]:
    """What ``run.json`` of an output says.

    Raises:
        OtherSettings: when it is not JSON.
    """
    try:
        return dict(json.loads((output / RUN_FILE).read_text()))
    except ValueError as error:
        raise OtherSettings(f"{output / RUN_FILE} must be JSON as a run writes it: {error}") from error
