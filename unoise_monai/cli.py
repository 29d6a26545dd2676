"""The ``unoise`` command."""

from __future__ import annotations

import fire

from unoise_monai.data.phantoms import write_phantom_cohort


def main() -> None:
    """``unoise phantom ROOT --count N``: write a synthetic abdominal CT cohort as a Decathlon folder."""
    fire.Fire({"phantom": write_phantom_cohort}, name="unoise")


if __name__ == "__main__":
    main()
