"""The pages under /ui, built in a thread while the server runs: importing Gradio takes seconds."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

PAGE_PATH = "/ui"
WAIT = "<!doctype html><html lang=en><title>Polytone</title><p>The page is being prepared. One moment.</p></html>"


class DeferredUi:
    """An app that is built in a thread once `running` is entered; until then it asks the browser to come back."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._app: ASGIApp | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as lifespan:
            building = asyncio.create_task(self._start(lifespan))
            try:
                yield
            finally:
                building.cancel()
                await asyncio.wait([building])

    async def _start(self, lifespan: AsyncExitStack) -> None:
        try:
            app = await asyncio.to_thread(self._build)
            await lifespan.enter_async_context(app.router.lifespan_context(app))
            self._app = app
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("the pages could not be built; the API is not affected")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        await HTMLResponse(WAIT, 503, headers={"refresh": "2", "retry-after": "2"})(scope, receive, send)


class UiMiddleware:
    """Sends / and /ui to the page and the rest to the API."""

    def __init__(self, app: ASGIApp, page: DeferredUi) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path in ("/", PAGE_PATH):
            await RedirectResponse(f"{PAGE_PATH}/")(scope, receive, send)
        elif scope["type"] in ("http", "websocket") and path.startswith(f"{PAGE_PATH}/"):
            await self._page(scope, receive, send)
        else:
            await self._app(scope, receive, send)
