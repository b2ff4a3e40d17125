"""Dependencies that authenticate the caller of a route."""

from collections.abc import Callable

from fastapi import Request

from polytone.serve.auth.keys import Key, Kind
from polytone.serve.services import Services

NOBODY = "anyone on this machine"


def inference_caller(services: Services) -> Callable[[Request], Key | None]:
    """A dependency: the inference key of the request; None where no keys exist."""

    def caller(request: Request) -> Key | None:
        return services.keyring.authenticate(request.headers.get("authorization"), Kind.INFERENCE)

    return caller


def admin_actor(services: Services) -> Callable[[Request], str]:
    """A dependency: who acts, for the audit log."""

    def actor(request: Request) -> str:
        key = services.keyring.authenticate(request.headers.get("authorization"), Kind.ADMIN)
        return f"key {key.name}" if key else NOBODY

    return actor
