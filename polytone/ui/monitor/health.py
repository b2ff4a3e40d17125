"""The health of the server, from GET /readyz, in words."""

from ..api import Api, ApiError
from ..markup import Html, failure, success

READY = "The server is ready: its engine answers, and it has tried to load every published version."
UNREACHABLE = "Is it running? Press Refresh to check again."
NOT_READY = "Requests wait or are refused until it recovers. Press Refresh to check again."


async def read_health(api: Api) -> Html:
    try:
        await api.get("/readyz")
    except ApiError as error:
        return health_words(error)
    return success(READY)


def health_words(error: ApiError) -> Html:
    """The reason why the server is not ready: engine, database, voices still loading, or no server at all."""
    if error.code == "unreachable":
        return failure(f"{error.message} {UNREACHABLE}")
    return failure(f"The server is not ready: {error.message.rstrip('.')}. {NOT_READY}")
