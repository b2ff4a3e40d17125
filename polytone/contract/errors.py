"""The errors a user meets. Each says what is wrong, where, and how to mend it.

PolytoneError
├── InputError        a file, field or option is wrong        exit 2   HTTP 400
├── NotFoundError     a named thing does not exist            exit 2   HTTP 404
├── CheckError        a check or gate failed                  exit 1   HTTP 422
├── StorageError      the disk refused (full, read-only)      exit 1   HTTP 507
└── UnavailableError  not now, but perhaps later              exit 1   HTTP 503
"""


class PolytoneError(Exception):
    """A refusal with a stable `code` a program can act on.

    Args:
        message: one or more sentences for a person.
        code: stable snake_case identifier.
        param: the field or option at fault, if there is one.
    """

    exit_code = 1
    status = 500

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class InputError(PolytoneError):
    exit_code = 2
    status = 400


class NotFoundError(PolytoneError):
    exit_code = 2
    status = 404


class CheckError(PolytoneError):
    status = 422


class StorageError(PolytoneError):
    status = 507


class UnavailableError(PolytoneError):
    status = 503
