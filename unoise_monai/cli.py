"""The ``unoise`` command."""

from __future__ import annotations

import fire

from unoise_monai.data.phantom_cohort import write_phantom_cohort


def main() -> None:
    """``unoise phantom ROOT --count N --kind abdomen|vessels``: write synthetic scans as a Decathlon folder."""
    fire.Fire({"phantom": write_phantom_cohort}, name="unoise")


if __name__ == "__main__":
    main()
