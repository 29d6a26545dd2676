"""Reads cases as `CaseReader` does, but for those whose names say what goes wrong; importable by other processes."""

import os
import time

from unoise_monai.data.cases import Case
from unoise_monai.runs.explain import CaseReader, Loaded


class Misreader(CaseReader):
    def __call__(self, case: Case) -> Loaded:
        if case.name == "crashes":
            os.abort()
        if case.name == "hangs":
            time.sleep(600)
        if case.name == "raises":
            raise KeyError(str(case.files[0]))
        return super().__call__(case)


class SlowReader(CaseReader):
    """Half a second slower; the item says from when to when, by the clock that all processes share."""

    def __call__(self, case: Case) -> Loaded:
        start = time.monotonic()
        time.sleep(0.5)
        loaded = super().__call__(case)
        loaded.item["read"] = (start, time.monotonic())
        return loaded


class Dead(CaseReader):
    """Ends the process that it comes to, before that can read."""

    def __setstate__(self, state: dict[str, object]) -> None:
        os.abort()
