"""Runs a function of a test module on several ranks: processes of one group, gloo on the CPU."""

import importlib.util
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

TESTS = Path(__file__).parent
SECONDS = 240
"""Far above what a job takes."""


def on_ranks(job: Callable[[Path], Any], folder: Path, world_size: int = 2) -> list[Any]:
    """What ``job(folder)`` returns on each rank: tensors, numbers and texts in lists and dictionaries."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world_size),
    }
    command = [sys.executable, __file__, inspect.getfile(job), job.__name__, str(folder)]
    logs = [folder / f"rank_{rank}.log" for rank in range(world_size)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                variables = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=variables, stdout=file, stderr=file))
        deadline = time.monotonic() + SECONDS
        codes = [process.poll() for process in processes]
        # A rank that waits for one that failed would wait for long.
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(code != 0 for code in codes):
        texts = "\n".join(log.read_text(encoding="utf-8") for log in logs)
        raise RuntimeError(f"all ranks must end with exit code 0 within {SECONDS} s, got {codes}:\n{texts}")
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run(path: str, name: str, folder: Path) -> None:
    """One rank's part: join the group, do the job, keep what it returns."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    idist.sync()
    specification = importlib.util.spec_from_file_location("jobs", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"a job must be a function of a Python file, got {path}")
    module = importlib.util.module_from_spec(specification)
    sys.modules["jobs"] = module
    specification.loader.exec_module(module)
    torch.save(getattr(module, name)(folder), folder / f"rank_{rank}.pt")
    idist.finalize()


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
