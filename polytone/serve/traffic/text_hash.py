"""Keyed hashes of texts, by which an answer is found again although its texts are not stored."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import select

from polytone.serve.database.session import Database, insert_for, reading, writing
from polytone.serve.database.tables import SecretRow

TEXT_HASHES = "text_hashes"


@dataclass(frozen=True)
class TextHasher:
    """HMAC-SHA256 of texts. Without the key, nobody can tell from a hash whether a guessed text is behind it."""

    key: bytes

    def hash(self, text: str) -> str:
        """64 hexadecimal digits; differences in white space alone do not count."""
        return hmac.new(self.key, " ".join(text.split()).encode(), hashlib.sha256).hexdigest()


def text_hasher(database: Database) -> TextHasher:
    """The hasher with the database's own key, which all replicas share; the key is made on the first call. Blocks."""
    query = select(SecretRow.value).where(SecretRow.name == TEXT_HASHES)
    with reading(database) as session:
        key = session.scalar(query)
    if key is None:
        insert = insert_for(session)(SecretRow).values(name=TEXT_HASHES, value=secrets.token_hex(32))
        with writing(database) as session:
            session.execute(insert.on_conflict_do_nothing())
            key = session.scalars(query).one()
    return TextHasher(bytes.fromhex(key))
