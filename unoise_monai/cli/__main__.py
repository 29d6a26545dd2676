"""``python -m unoise_monai.cli`` is ``unoise``."""

import sys

from unoise_monai.cli.main import main

sys.exit(main())
