"""The ``unoise`` command. Its modules import PyTorch, MONAI and the rest of the package when a command runs."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit status, documented in docs/cohort.md."""

    DONE = 0
    """All that was asked for is there."""
    ERROR = 1
    """The run ended early: the output cannot be written, or an error that nobody expected. Start again to go on."""
    USAGE = 2
    """The command, its input or its bundle is wrong; nothing was begun."""
    SOME_FAILED = 3
    """The run came to its end, and failures.csv has a line for each case that failed."""
    REFUSED = 4
    """The output is in use, or holds results of other settings."""
    INTERRUPTED = 130
    """By Ctrl-C or SIGTERM; what is done is kept."""
