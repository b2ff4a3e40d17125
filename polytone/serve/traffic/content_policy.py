"""Content policies: which parts of an answer's content are stored, by voice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from polytone.contract.digests import digest_text


class Policy(StrEnum):
    """Store the texts, hashes by which a text can be found again, or neither."""

    FULL = "full"
    HASHED = "hashed"
    NONE = "none"


@dataclass(frozen=True)
class Policies:
    """The content policy of each voice; `default` holds for voices without one of their own."""

    default: Policy = Policy.FULL
    by_voice: Mapping[str, Policy] = field(default_factory=dict)

    def for_voice(self, voice: str) -> Policy:
        return self.by_voice.get(voice, self.default)


def stored_name(conversation: str | None, policy: Policy) -> str | None:
    """The conversation's name as it is stored: only the policy `full` keeps it, since it may be a person's."""
    return conversation if policy is Policy.FULL or conversation is None else digest_text(conversation)
