"""One prompt asked of several models at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random
from uuid import uuid4

from ..answer import answered, ended
from ..api import Api
from ..sampling import Sampling
from ..sides import side_by_side
from ..thread import Turn, new_id
from .blind import order_of
from .comparison import Comparison, Session
from .prompts import Prompt


@dataclass(frozen=True)
class Asking:
    """Settings for prompts, as the components of the tab have them."""

    key: str
    chosen: list[str] | None
    hide: bool
    sampling: Sampling

    @property
    def models(self) -> tuple[str, ...]:
        """Each once, without spaces around what was typed."""
        return tuple(dict.fromkeys(filter(None, (model.strip() for model in self.chosen or ()))))

    def comparison(self, prompt: Prompt, random: Random) -> Comparison:
        """The comparison before any answer. Only two can be compared blind."""
        models = self.models
        blind = self.hide and len(models) == 2
        requests = (self.sampling.request(model, list(prompt)) for model in models)
        details = ({"model": request["model"], "request": request, "under_way": True} for request in requests)
        blank = tuple(Turn(new_id(), None, "assistant", "", details=one) for one in details)
        return Comparison(uuid4().hex, prompt, models, order_of(len(models), blind, random), blind, blank)


def asked_with(key: str, chosen: list[str] | None, hide: bool, *sampling: float | None) -> Asking:
    """From a key and the values of `CompareView.asking`."""
    return Asking(key, chosen, hide, Sampling(*sampling))


async def compared(api: Api, session: Session, comparison: Comparison, halt: asyncio.Event) -> AsyncIterator[Session]:
    """The session as answers arrive, until all have ended or `halt` is set."""
    yield session.showing(comparison)
    streams = [answered(api, turn.details["request"], None, turn) for turn in comparison.answers]
    async with aclosing(side_by_side(streams, comparison.answers, halt)) as moments:
        async for answers in moments:
            comparison = replace(comparison, answers=answers)
            yield session.showing(comparison)
    yield session.showing(at_its_end(comparison))


def at_its_end(comparison: Comparison) -> Comparison:
    """The comparison with its answers so far. There is no vote on an incomplete answer."""
    answers = (ended(one, finish="stopped") if one.details.get("under_way") else one for one in comparison.answers)
    return replace(comparison, answers=tuple(answers), over=True)
