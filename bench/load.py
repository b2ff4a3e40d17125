"""The load generator: chat requests over HTTP, each stream a connection of its own, timed chunk by chunk.

It runs on the cores it measures. So while streams run it parses no chunk but an answer's last, which carries the count
of tokens, and it says how much processor time it took itself.
"""

import asyncio
import json
import random
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = ("order", "parcel", "refund", "invoice", "card", "blue", "green", "small", "large", "delivery", "address")


@dataclass(frozen=True)
class Ask:
    """One request: who shall answer, what is asked, and how many tokens at most; `exact` goes on past the end token.

    `more` is added to the body, for a server that names its voices otherwise.
    """

    model: str
    messages: list[dict[str, str]]
    tokens: int
    exact: bool = True
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came back: seconds of the request's start and of every chunk on one clock, tokens counted by the server."""

    ask: Ask
    began: float
    chunks: list[float]
    tokens: int
    lines: list[bytes]

    @property
    def text(self) -> str:
        deltas = (json.loads(line.removeprefix(b"data: "))["choices"] for line in self.lines)
        return "".join(choice[0]["delta"].get("content") or "" for choice in deltas if choice)

    @property
    def first_token_seconds(self) -> float:
        return self.chunks[0] - self.began

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]


@dataclass(frozen=True)
class Result:
    """A run: its answers, how long it took, and the processor seconds the generator took of that."""

    answers: list[Answer]
    seconds: float
    own_cpu_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def first_token(self, quantile: float) -> float:
        times = sorted(answer.first_token_seconds for answer in self.answers)
        return times[min(len(times) - 1, int(quantile * len(times)))]


def prompt(words: int, seed: object) -> list[dict[str, str]]:
    """A user's message of about as many tokens as words, that no cache has seen."""
    chosen = random.Random(str(seed))  # noqa: S311 - the same prompts in every run
    return [{"role": "user", "content": " ".join(chosen.choice(WORDS) for _ in range(words))}]


def run(
    url: str,
    asks: Sequence[Ask],
    streams: int,
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    stagger: float = 0,
) -> Result:
    """Keep `streams` requests under way until all asks are answered.

    Args:
        beside: awaited while the streams run.
        stagger: seconds that each stream begins after the one before.

    Raises:
        SystemExit: a request failed; a benchmark that leaves out failures measures nothing.
    """

    async def run_streams() -> Result:
        waiting, answers = list(reversed(asks)), list[Answer]()
        cpu, began = own_cpu(), time.perf_counter()
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def stream(number: int) -> None:
                await asyncio.sleep(number * stagger)
                while waiting:
                    answers.append(await answer(session, url, waiting.pop()))

            await asyncio.gather(*(stream(number) for number in range(streams)), *([beside()] if beside else []))
        return Result(answers, time.perf_counter() - began, own_cpu() - cpu)

    return asyncio.run(run_streams())


async def answer(session: aiohttp.ClientSession, url: str, ask: Ask) -> Answer:
    body = {
        "model": ask.model,
        "messages": ask.messages,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if ask.exact else {}),
        **ask.more,
    }
    began, chunks, lines = time.perf_counter(), list[float](), list[bytes]()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"{url}: {response.status} {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunks.append(time.perf_counter())
                lines.append(line)
    last = json.loads(lines[-1].removeprefix(b"data: "))
    if not last.get("usage"):
        raise SystemExit(f"{url}: the stream ended without its usage: {last}")
    if b'"role"' in lines[0]:  # the first chunk names the role and comes before the first token
        chunks = chunks[1:]
    return Answer(ask, began, chunks[:-1], last["usage"]["completion_tokens"], lines)


def own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
