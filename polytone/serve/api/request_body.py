"""Request bodies, read up to a limit."""

from collections.abc import AsyncIterator

from fastapi import Request

from polytone.contract.errors import TooLargeError


async def read_body(request: Request, limit: int) -> bytes:
    """Raises TooLargeError `body_too_large` before the rest is read."""
    return b"".join([chunk async for chunk in limited(request, limit)])


async def limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's chunks; refuses by the announced length first, then by what really comes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        yield chunk


def too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"The request's body is larger than the {limit} bytes this server takes.", code="body_too_large"
    )
