"""What GET /readyz says, for people."""

from ..api import Api, ApiError
from ..markup import Safe, told_badly, told_well

READY = "The server is ready: its engine answers, and every published version was tried."
UNREACHABLE = "Nothing can be said of its engine. Is it running? Press Refresh to look again."
NOT_READY = "Until it is, requests are refused or wait. Polytone goes on by itself; press Refresh to look again."


async def read_health(api: Api) -> Safe:
    try:
        await api.get("/readyz")
    except ApiError as error:
        return health_words(error)
    return told_well(READY)


def health_words(error: ApiError) -> Safe:
    """Why the server is not ready: its engine, its database, voices that are being loaded, or that it is not there."""
    if error.code == "unreachable":
        return told_badly(f"{error.message} {UNREACHABLE}")
    return told_badly(f"The server is not ready: {error.message.rstrip('.')}. {NOT_READY}")
