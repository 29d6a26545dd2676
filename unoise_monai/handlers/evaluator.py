"""An evaluator that goes on after a bad case."""

import csv
import logging
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from unoise_monai.atomic import atomic_path

logger = logging.getLogger(__name__)


def cause_of(error: BaseException) -> BaseException:
    """What went wrong in a chain of transforms: MONAI's own error names the transform by its place in memory only."""
    while str(error).startswith("applying transform") and error.__cause__ is not None:
        error = error.__cause__
    return error


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator`, to which a case that fails is a line in a table.

    A case that could not be read (`CaseDataset`), or that the network or the postprocessing fails on, is left out;
    handlers see no item of it. At the end ``OUTPUT/failures.csv`` lists such cases with the reasons, and the log says
    how many there were; where there were none, it is not there.

    Args:
        output_dir: of the table.
        arguments: of `SupervisedEvaluator`.
    """

    def __init__(self, output_dir: str | os.PathLike[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.table = Path(output_dir) / "failures.csv"
        self.failed: dict[str, str] = {}
        self.add_event_handler(Events.STARTED, lambda: self.failed.clear())
        self.add_event_handler(Events.COMPLETED, self.report)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        case = str(batchdata["case"][0])
        if "failed" in batchdata:
            return self._fail(case, batchdata["failed"][0])
        try:
            return super()._iteration(engine, batchdata)
        # Whatever ends one case, the others go on; it is in the table of failures.
        except Exception as error:
            cause = cause_of(error)
            return self._fail(case, f"{type(cause).__name__}: {cause}")

    def _fail(self, case: str, reason: str) -> list[Any]:
        logger.error("%s failed: %s", case, reason)
        self.failed[case] = " ".join(reason.split())
        return []

    def report(self, engine: Engine) -> None:
        """Write the table of failures."""
        if not self.failed:
            self.table.unlink(missing_ok=True)
            return
        with atomic_path(self.table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("case", "reason"), *self.failed.items()])
        logger.error("failed cases: %d, see %s", len(self.failed), self.table)
