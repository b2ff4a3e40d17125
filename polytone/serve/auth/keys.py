"""API keys: creating, revoking and checking them. Only a hash of a key's secret is stored."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from polytone.contract.errors import ConflictError, DeniedError, InputError, NotFoundError
from polytone.contract.names import check_name
from polytone.serve.database import audit
from polytone.serve.database.session import Database, now, reading, writing
from polytone.serve.database.tables import KeyRow


class Kind(StrEnum):
    """Inference keys ask for answers, admin keys change what answers. Neither does the work of the other."""

    INFERENCE = "inference"
    ADMIN = "admin"


PREFIXES = {Kind.INFERENCE: "pt-inf", Kind.ADMIN: "pt-adm"}
TOKEN = re.compile(r"pt-(?:inf|adm)-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
UNKNOWN = (None, "0" * 64)
HIGHEST_LIMIT = 2**31 - 1  # a 32-bit column


@dataclass(frozen=True)
class Key:
    """A key without its secret. `adapters` are the models it may ask for, by voice or version; None means all."""

    id: str
    name: str
    kind: Kind
    adapters: frozenset[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def live(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())

    def allows(self, model: str, voice: str) -> bool:
        return self.adapters is None or bool({model, voice} & self.adapters)

    def as_json(self) -> dict[str, Any]:
        def moment(value: datetime | None) -> str | None:
            return value.isoformat(timespec="seconds") if value else None

        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind.value,
            "adapters": sorted(self.adapters) if self.adapters is not None else None,
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrent_requests": self.concurrent_requests,
            "created_at": moment(self.created_at),
            "expires_at": moment(self.expires_at),
            "revoked_at": moment(self.revoked_at),
        }


class KeyStore:
    """The keys in the database. Methods block: call them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        kind: Kind,
        actor: str,
        *,
        adapters: frozenset[str] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        concurrent_requests: int | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """Make a key. Its text is returned here and cannot be read again.

        Raises:
            InputError: `invalid_name`, or `invalid_request` for a limit.
            ConflictError: `key_name_taken`, also by a key that was revoked.
        """
        check_name(name)
        check_limits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent_requests=concurrent_requests,
        )
        secret = secrets.token_urlsafe(32)
        row = KeyRow(
            id=secrets.token_hex(6),
            name=name,
            kind=kind.value,
            secret_sha256=hash_secret(secret),
            adapters=sorted(adapters) if adapters is not None else None,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent_requests=concurrent_requests,
            created_at=now(),
            expires_at=expires_at,
            revoked_at=None,
        )
        try:
            with writing(self._database) as session:
                session.add(row)
                audit.record(session, actor, "create_key", name, None, as_key(row).as_json())
        except IntegrityError:
            raise self._name_taken(name) from None
        return as_key(row), f"{PREFIXES[kind]}-{row.id}-{secret}"

    def revoke(self, name: str, actor: str) -> Key:
        """End a key; one that was revoked before stays as it is.

        Raises:
            NotFoundError: `key_not_found`.
        """
        with writing(self._database) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.name == name).with_for_update())
            if row is None:
                raise NotFoundError(f"There is no key {name!r}.", code="key_not_found", param="name")
            if row.revoked_at is None:
                row.revoked_at = now()
                audit.record(session, actor, "revoke_key", name, "live", "revoked")
            return as_key(row)

    def _name_taken(self, name: str) -> ConflictError:
        """A revoked key keeps its name: its conversations would be shown to a new holder, and the audit log would name
        two keys alike."""
        with reading(self._database) as session:
            revoked_at = session.scalar(select(KeyRow.revoked_at).where(KeyRow.name == name))
        state = (
            f"The key {name} was revoked, and its name stays taken because its conversations, the answers it asked for "
            "and the audit log name it"
            if revoked_at
            else f"There is a key {name}"
        )
        return ConflictError(f"{state}. Choose another name, such as {name}-2.", code="key_name_taken", param="name")

    def all(self) -> list[Key]:
        return [key for key, _ in self.with_hashes()]

    def with_hashes(self) -> list[tuple[Key, str]]:
        """Every key, the oldest first, with the hash of its secret."""
        with reading(self._database) as session:
            rows = session.scalars(select(KeyRow).order_by(KeyRow.created_at))
            return [(as_key(row), row.secret_sha256) for row in rows]


class Keyring:
    """The keys in memory, to check a request's key without asking the database."""

    def __init__(self, keys: list[tuple[Key, str]]) -> None:
        self._keys: dict[str, tuple[Key, str]] = {}
        self.refresh(keys)

    def refresh(self, keys: list[tuple[Key, str]]) -> None:
        self._keys = {key.id: (key, digest) for key, digest in keys}

    @property
    def required(self) -> bool:
        """Once a key was made, every request needs one. Revoking the last one does not open the server again."""
        return bool(self._keys)

    def authenticate(self, authorization: str | None, kind: Kind) -> Key | None:
        """The key of an `Authorization` header, or None where no key was ever made.

        Raises:
            DeniedError: `key_missing`, `key_invalid` (unknown, revoked or expired) or `key_of_other_kind`.
        """
        if not self.required:
            return None
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise DeniedError("This server needs a key. Send the header: Authorization: Bearer KEY", code="key_missing")
        match = TOKEN.fullmatch(token.strip())
        key, secret_hash = self._keys.get(match[1], UNKNOWN) if match else UNKNOWN
        # Compared even where the id is unknown, so that the time taken does not tell which ids exist.
        matches = hmac.compare_digest(hash_secret(match[2] if match else ""), secret_hash)
        if key is None or not matches or not key.live():
            raise DeniedError("The key is not valid: unknown, revoked or expired.", code="key_invalid")
        if key.kind is not kind:
            raise DeniedError(
                f"This is an {key.kind} key; this route needs an {kind} key.", code="key_of_other_kind", status=403
            )
        return key


def check_limits(**limits: int | None) -> None:
    for name, limit in limits.items():
        if limit is not None and not 1 <= limit <= HIGHEST_LIMIT:
            raise InputError(
                f"{name}: {limit} is not a number from 1 to {HIGHEST_LIMIT}.", code="invalid_request", param=name
            )


def hash_secret(secret: str) -> str:
    """A plain hash: nobody can guess 256 random bits, and a slow hash would only slow down requests."""
    return hashlib.sha256(secret.encode()).hexdigest()


def as_key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        kind=Kind(row.kind),
        adapters=frozenset(row.adapters) if row.adapters is not None else None,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_requests=row.concurrent_requests,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
