"""Version ids: a voice's name and the digest of an adapter's content, written `voice@digest`."""

import re
from dataclasses import dataclass
from typing import Self

from .errors import InputError
from .names import NAME_PATTERN

DIGEST_LENGTH = 12


@dataclass(frozen=True)
class VersionId:
    """One version of a voice. `digest` is the first 12 hexadecimal digits of its manifest's digest."""

    voice: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `voice@digest`.

        Raises:
            InputError: `invalid_version`.
        """
        voice, _, digest = text.partition("@")
        if not re.fullmatch(NAME_PATTERN, voice) or not re.fullmatch(rf"[0-9a-f]{{{DIGEST_LENGTH}}}", digest):
            raise InputError(
                f"{text!r} is not a version id; a version is named like acme@3f2a91c0de12.",
                code="invalid_version",
                param="version",
            )
        return cls(voice, digest)

    def __str__(self) -> str:
        return f"{self.voice}@{self.digest}"

    @property
    def path(self) -> str:
        """Its folder's path inside a folder of adapters, with `/` on every system."""
        return f"{self.voice}/{self.digest}"


def voice_of(model: str) -> str:
    """The voice of a version id. Any other name, such as a voice's or the base's, is returned as it is."""
    return model.partition("@")[0]
