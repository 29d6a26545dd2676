"""The ``unoise`` command."""

from unoise_monai.cli.main import main

__all__ = ["main"]
