"""Names of voices, bases and keys."""

import re

from .errors import InputError

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a path, a URL and a metric label.

    Raises:
        InputError: `invalid_name`.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InputError(
            f"{what} {name!r} is not allowed: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
            "starting with a letter or digit.",
            code="invalid_name",
            param=what,
        )
    return name
