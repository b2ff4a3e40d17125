"""Errors that users see. Each says what is wrong, where, and how to fix it.

PolytoneError
├── InputError        a file, field or option is wrong        exit 2   HTTP 400
├── NotFoundError     a named thing does not exist            exit 2   HTTP 404
├── DeniedError       no key, the wrong key or a forbidden origin exit 1   HTTP 401 or 403
├── TooLargeError     more than this server takes             exit 2   HTTP 413
├── LimitError        too much at once; try again later       exit 1   HTTP 429
├── ConflictError     someone else changed it meanwhile       exit 1   HTTP 409
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

    `reasons` lists every problem where a check found several; `headers` are added to the HTTP response.
    """

    exit_code = 1
    status = 500

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.reasons: list[dict[str, str]] = []
        self.headers: dict[str, str] = {}


class InputError(PolytoneError):
    exit_code = 2
    status = 400


class NotFoundError(PolytoneError):
    exit_code = 2
    status = 404


class DeniedError(PolytoneError):
    status = 401

    def __init__(self, message: str, *, code: str, param: str | None = None, status: int = 401) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status


class TooLargeError(PolytoneError):
    exit_code = 2
    status = 413


class LimitError(PolytoneError):
    """`retry_after`: seconds after which a retry may succeed."""

    status = 429

    def __init__(self, message: str, *, code: str, retry_after: float, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after = retry_after


class ConflictError(PolytoneError):
    status = 409


class CheckError(PolytoneError):
    status = 422


class StorageError(PolytoneError):
    status = 507


class UnavailableError(PolytoneError):
    status = 503


def combined(problems: list[CheckError]) -> CheckError:
    """Several problems as one error, with the code of the first and the messages of all."""
    error = CheckError("\n".join(one.message for one in problems), code=problems[0].code, param=problems[0].param)
    error.reasons = [
        {"code": one.code, "message": one.message, **({"param": one.param} if one.param else {})} for one in problems
    ]
    return error
