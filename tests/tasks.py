"""The tasks of the shipped bundles, as their configurations define them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from unoise_monai.data import SegmentationTask

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def bundle_task(bundle: str, **changes: Any) -> SegmentationTask:
    """The task of a bundle, with changes."""
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / bundle / "configs" / "inference.yaml"))
    return replace(parser.get_parsed_content("task"), **changes)


def hippocampus(**changes: Any) -> SegmentationTask:
    return bundle_task("hippocampus_mr_unoise", **changes)


def pancreas(**changes: Any) -> SegmentationTask:
    return bundle_task("pancreas_ct_unoise", **changes)
