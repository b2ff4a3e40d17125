"""The exit codes of every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Errors of the domain carry theirs in `PolytoneError.exit_code`, which is FAILED or BAD_INPUT."""

    DONE = 0
    FAILED = 1  # a check or gate failed, or something is not available now
    BAD_INPUT = 2  # an option, a file or a name is wrong
    INTERRUPTED = 130  # Ctrl-C
