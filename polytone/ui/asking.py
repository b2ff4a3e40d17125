"""Asking several models the same thing at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import uuid4

from .answer import answered, ended
from .api import Api
from .blind import order_of
from .comparison import Comparison, Session
from .prompts import Prompt
from .sides import side_by_side
from .thread import Turn, new_id


@dataclass(frozen=True)
class Asking:
    """What prompts are asked with, as the components of the tab have it."""

    key: str
    chosen: list[str] | None
    hide: bool
    temperature: float | None
    max_tokens: float | None
    seed: float | None

    @property
    def models(self) -> tuple[str, ...]:
        """Each once; what was typed may have spaces around it."""
        return tuple(dict.fromkeys(filter(None, (model.strip() for model in self.chosen or ()))))

    def request(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """A chat completion; what is not set is left to the voice."""
        wanted: dict[str, Any] = {"model": model, "messages": list(prompt)}
        if self.temperature is not None:
            wanted["temperature"] = self.temperature
        if self.max_tokens is not None:
            wanted["max_tokens"] = int(self.max_tokens)
        if self.seed is not None:
            wanted["seed"] = int(self.seed)
        return wanted

    def comparison(self, prompt: Prompt, random: Random) -> Comparison:
        """The comparison before anything has come. Only two can be compared blind."""
        models = self.models
        blind = self.hide and len(models) == 2
        details = ({"model": model, "request": self.request(model, prompt), "under_way": True} for model in models)
        blank = tuple(Turn(new_id(), None, "assistant", "", details=one) for one in details)
        return Comparison(uuid4().hex, prompt, models, order_of(len(models), blind, random), blind, blank)


async def compared(api: Api, session: Session, comparison: Comparison, halt: asyncio.Event) -> AsyncIterator[Session]:
    """The session as the answers come, until all have ended or `halt` is set."""
    yield session.showing(comparison)
    streams = [answered(api, turn.details["request"], None, turn) for turn in comparison.answers]
    async with aclosing(side_by_side(streams, comparison.answers, halt)) as moments:
        async for answers in moments:
            comparison = replace(comparison, answers=answers)
            yield session.showing(comparison)
    yield session.showing(at_its_end(comparison))


def at_its_end(comparison: Comparison) -> Comparison:
    """What had come until then stays; there is no vote on half an answer."""
    answers = (ended(one, finish="stopped") if one.details.get("under_way") else one for one in comparison.answers)
    return replace(comparison, answers=tuple(answers), over=True)
