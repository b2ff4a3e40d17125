"""Version ids: what is one, what is none, and their parts."""

import pytest

from polytone.contract.errors import InputError
from polytone.contract.version_id import VersionId, voice_of


def test_an_id_is_read_and_written_the_same() -> None:
    version = VersionId.parse("acme.shop-2@3f2a91c0de12")
    assert (version.voice, version.digest) == ("acme.shop-2", "3f2a91c0de12")
    assert (str(version), version.path) == ("acme.shop-2@3f2a91c0de12", "acme.shop-2/3f2a91c0de12")


@pytest.mark.parametrize(
    "text", ["acme", "acme@", "../x@0123456789ab", "acme@0123456789AB", "a/b@0123456789ab", "a@b@c"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a version id") as caught:
        VersionId.parse(text)
    assert caught.value.code == "invalid_version"


def test_the_voice_of_a_version_and_of_a_voice() -> None:
    assert voice_of("acme@3f2a91c0de12") == voice_of("acme") == "acme"
