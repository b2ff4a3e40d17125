"""The command `chat`: a conversation with a voice in the terminal."""

import asyncio
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import uuid4

import typer

from polytone.contract.errors import CheckError, DeniedError, InputError, PolytoneError, UnavailableError

from .options import DEFAULT_URL, UrlOption
from .output import did_you_mean

if TYPE_CHECKING:
    from polytone.ui.api import Api, ApiError

QUIT = "/quit"
UNAUTHORIZED = 401
INPUT_STATUS = (400, 404, 413)
T = TypeVar("T")


def chat(
    voice: Annotated[str, typer.Argument(help="A voice, a version (name@digest12), or the base's id.")],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this alone, print the answer and stop.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key: Annotated[
        str | None, typer.Option(envvar="POLYTONE_KEY", help="An inference key, if the server needs one.")
    ] = None,
) -> None:
    """Talk to a voice on a running server. Each answer is followed by the version that gave it.

    The server sees one conversation, so that in a canary all of its answers come from one version. /quit or Ctrl-D ends
    it. With --message the answer goes to standard output and the version to standard error.

    Examples: polytone chat acme, or: polytone chat acme --message "Where is my order?"
    """
    from polytone.ui.api import Server

    conversation = Conversation(Server(url.rstrip("/")).api(key), voice)
    if message is not None:
        conversation.ask(message)
        return
    conversation.check()
    typer.echo(f"{voice} at {url}. {QUIT} or Ctrl-D ends the conversation.", err=True)
    while (line := next_line()) is not None:
        try:
            conversation.ask(line)
        except PolytoneError as error:
            typer.echo(f"error: {error.message}", err=True)


def next_line() -> str | None:
    """The next line that says something; None at the end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if line:
            return None if line == QUIT else line


@dataclass
class Conversation:
    """What was said so far, by one id for the server. An answer that failed leaves no trace in it."""

    api: "Api"
    voice: str
    id: str = field(default_factory=lambda: f"chat-{uuid4().hex}")
    messages: list[dict[str, str]] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a wrong address, key or name before anybody writes a question.

        Raises:
            PolytoneError: as `ask`.
        """
        names = [model["id"] for model in self._run(self.api.models())]
        if self.voice not in names and "@" not in self.voice:
            raise InputError(
                f"There is no voice {self.voice!r} at {self.api.server.url}.{did_you_mean(self.voice, names)}",
                code="model_not_found",
                param="voice",
            )

    def ask(self, content: str) -> None:
        """Print the answer as it comes.

        Raises:
            UnavailableError: `server_unreachable`.
            DeniedError, InputError, CheckError: what the server refused the request for, under the server's own code.
        """
        messages = [*self.messages, {"role": "user", "content": content}]
        answer = self._run(self._answer(messages))
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    async def _answer(self, messages: list[dict[str, str]]) -> str:
        answer, version = "", None
        try:
            async for chunk in self.api.chat({"model": self.voice, "messages": messages}, self.id):
                version = chunk.get("model") or version
                for choice in chunk.get("choices") or []:
                    text = (choice.get("delta") or {}).get("content") or ""
                    answer += text
                    typer.echo(printable(text), nl=False)
        finally:
            if version:
                typer.echo()  # the line ends, also where an answer broke off
        typer.secho(f"[{version}]", err=True, dim=True)
        return answer

    def _run(self, request: Coroutine[Any, Any, T]) -> T:
        from polytone.ui.api import ApiError

        try:
            return asyncio.run(request)
        except ApiError as error:
            raise as_refusal(error, self.api.server.url) from None


def as_refusal(error: "ApiError", url: str) -> PolytoneError:
    if not error.status and error.code == "unreachable":
        return UnavailableError(
            f"{url} cannot be reached. Is a server running there? Start one with `polytone serve`, or name another by "
            "--url.",
            code="server_unreachable",
        )
    if error.status == UNAUTHORIZED:
        return DeniedError(f"{error.message} Set POLYTONE_KEY, or add --key.", code=error.code)
    refused = InputError if error.status in INPUT_STATUS else CheckError
    return refused(error.message, code=error.code)


def printable(text: str) -> str:
    """The text without control characters, by which an answer could do things to the terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
