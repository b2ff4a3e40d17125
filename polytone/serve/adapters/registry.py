"""The registry: which versions should be served, and which of them answer for a voice. It lives in the database.

Every change is one transaction with its entry in the audit log. Repeating a change changes nothing. Changes of a voice
come one after the other, from whichever replica: each begins where the one before it ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from polytone.contract.errors import CheckError, ConflictError, NotFoundError
from polytone.contract.version_id import VersionId
from polytone.serve.database import audit
from polytone.serve.database.session import Database, one_at_a_time, reading, writing
from polytone.serve.database.tables import RolloutRow, VersionRow

from .promotion_gates import Gates
from .rollout import Part, Rollout, check_parts

PUBLISHED, RETIRED = "published", "retired"


@dataclass(frozen=True)
class Desired:
    """The state that every replica should reach: versions to hold, and the rollout of each voice."""

    versions: frozenset[str] = frozenset()
    rollouts: dict[str, Rollout] = field(default_factory=dict)


class Registry:
    """Reads and changes the desired state. Methods block: call them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def desired(self) -> Desired:
        with reading(self._database) as session:
            versions = session.scalars(select(VersionRow.id).where(VersionRow.state == PUBLISHED))
            rollouts = {row.voice: as_rollout(row) for row in latest_rollouts(session) if row.parts}
            return Desired(frozenset(versions), rollouts)

    def versions(self) -> list[VersionRow]:
        with reading(self._database) as session:
            return list(session.scalars(select(VersionRow).order_by(VersionRow.name, VersionRow.published_at)))

    def history(self, voice: str) -> list[Rollout]:
        """Every rollout of a voice, newest first."""
        with reading(self._database) as session:
            rows = session.scalars(
                select(RolloutRow).where(RolloutRow.voice == voice).order_by(RolloutRow.generation.desc())
            )
            return [as_rollout(row) for row in rows]

    def publish(self, version: str, actor: str) -> bool:
        """Ask every replica to load a version; a retired one comes back. Returns whether that changed anything."""
        voice = VersionId.parse(version).voice
        try:
            with writing(self._database) as session:
                row = session.get(VersionRow, version, with_for_update=True)
                if row is not None and row.state == PUBLISHED:
                    return False
                before = row.state if row else None
                session.merge(VersionRow(id=version, name=voice, state=PUBLISHED))
                audit.record(session, actor, "publish", version, before, PUBLISHED)
        except IntegrityError:
            return False  # another publisher of the same content was faster
        return True

    def roll_out(
        self,
        voice: str,
        parts: list[Part],
        actor: str,
        expected: int | None = None,
        action: str = "rollout",
        gates: Gates | None = None,
    ) -> Rollout:
        """Let `parts` answer for `voice`.

        Args:
            expected: the generation that this change replaces; 0 where there is none yet.
            gates: what versions whose share grows must have passed; None lets every version through.

        Raises:
            InputError: `rollout_invalid`, `alias_mismatch`, `invalid_name`, `invalid_version`.
            CheckError: `gates_failed`, `verdict_damaged`.
            NotFoundError: `version_not_published`.
            ConflictError: `changed_meanwhile` if the voice is not at `expected`, or another change was faster.
        """
        check_parts(voice, parts)
        with self._changing(voice) as session:
            for version in sorted(part.version for part in parts):
                if not is_published(session, version):
                    raise NotFoundError(
                        f"{version} is not published. Run: polytone adapters publish {version}",
                        code="version_not_published",
                        param="version",
                    )
            current = current_rollout(session, voice, expected)
            if current is not None and current.parts == tuple(parts):
                return current
            rollout = Rollout(
                current.generation + 1 if current else 1,
                tuple(parts),
                previous_of(session, voice, current, tuple(parts)) if current else None,
            )
            forced = gates.check(growing(current, rollout)) if gates is not None else {}
            session.add(as_row(voice, rollout))
            before = current.as_json() if current else None
            audit.record(session, actor, action, voice, before, {**rollout.as_json(), **forced})
        return rollout

    def promote(
        self, voice: str, version: str, actor: str, expected: int | None = None, gates: Gates | None = None
    ) -> Rollout:
        """Let `version` alone answer for `voice`."""
        return self.roll_out(voice, [Part(version, 100)], actor, expected, action="promote", gates=gates)

    def roll_back(self, voice: str, actor: str, expected: int | None = None) -> Rollout:
        """Go back to the rollout before; again goes back further. From a canary that went to everyone that is the
        version that answered alone before it; from a canary still under way, the canary's last step.

        Raises:
            NotFoundError: `voice_not_found`.
            CheckError: `nothing_to_roll_back_to`, also where a version of that rollout was retired since.
            ConflictError: `changed_meanwhile`.
        """
        with self._changing(voice) as session:
            current = current_rollout(session, voice, expected)
            if current is None:
                raise no_voice(voice)
            target = rollout_of(session, voice, current.previous)
            if target is None:
                raise CheckError(
                    f"{voice} has no earlier rollout to go back to.", code="nothing_to_roll_back_to", param="name"
                )
            for part in target.parts:
                if not is_published(session, part.version):
                    raise CheckError(
                        f"{voice} cannot go back: {part.version} was retired. Publish it again first: "
                        f"polytone adapters publish {part.version}",
                        code="nothing_to_roll_back_to",
                        param="name",
                    )
            rollout = Rollout(current.generation + 1, target.parts, target.previous)
            session.add(as_row(voice, rollout))
            audit.record(session, actor, "rollback", voice, current.as_json(), rollout.as_json())
        return rollout

    def remove_voice(self, voice: str, actor: str) -> list[str]:
        """Let nobody answer for `voice`. Returns the versions that did; they stay published."""
        with self._changing(voice) as session:
            current = current_rollout(session, voice)
            if current is None or not current.parts:
                raise no_voice(voice)
            session.add(as_row(voice, Rollout(current.generation + 1, (), current.generation)))
            audit.record(session, actor, "remove_voice", voice, current.as_json(), None)
        return [part.version for part in current.parts]

    def retire(self, version: str, actor: str) -> bool:
        """Ask every replica to drain and unload `version`. Its files stay. Returns whether that changed anything.

        Raises:
            NotFoundError: `version_not_published`.
            CheckError: `version_in_use` while a voice's rollout names it.
        """
        with writing(self._database) as session:
            row = session.get(VersionRow, version, with_for_update=True)
            if row is None:
                raise NotFoundError(f"{version} was never published.", code="version_not_published", param="version")
            for rollout in latest_rollouts(session):
                if version in as_rollout(rollout).versions:
                    raise CheckError(
                        f"{version} answers for {rollout.voice}. Promote another version of {rollout.voice} first, "
                        f"or remove the voice with: polytone adapters retire {rollout.voice}",
                        code="version_in_use",
                        param="version",
                    )
            if row.state == RETIRED:
                return False
            row.state = RETIRED
            audit.record(session, actor, "retire", version, PUBLISHED, RETIRED)
            return True

    @contextmanager
    def _changing(self, voice: str) -> Iterator[Session]:
        """One change of a voice's rollout, after all earlier ones. Raises `changed_meanwhile` if another was faster."""
        try:
            with writing(self._database) as session:
                one_at_a_time(session, f"voice {voice}")
                yield session
        except IntegrityError:
            raise changed_meanwhile(voice) from None


def is_published(session: Session, version: str) -> bool:
    """Whether it is; until the transaction ends nobody can retire it."""
    row = session.get(VersionRow, version, with_for_update=True)
    return row is not None and row.state == PUBLISHED


def current_rollout(session: Session, voice: str, expected: int | None = None) -> Rollout | None:
    """A voice's newest rollout; None if it never had one. Raises `changed_meanwhile` if it is not `expected`."""
    row = session.scalar(
        select(RolloutRow).where(RolloutRow.voice == voice).order_by(RolloutRow.generation.desc()).limit(1)
    )
    if expected is not None and expected != (row.generation if row else 0):
        raise changed_meanwhile(voice)
    return as_rollout(row) if row else None


def previous_of(session: Session, voice: str, current: Rollout, parts: tuple[Part, ...]) -> int:
    """The generation that a rollback from `parts` leads to, when they replace `current`.

    A version that shared the conversations and then got all of them was a canary. One rollback must take all of them
    from it, so it skips the canary's steps and leads to the last rollout in which another version answered alone.
    """
    promoted = Rollout(0, parts).sole
    if promoted is not None and current.sole is None:
        earlier = rollout_of(session, voice, current.previous)
        while earlier is not None and earlier.sole in (None, promoted):
            earlier = rollout_of(session, voice, earlier.previous)
        if earlier is not None:
            return earlier.generation
    return current.generation


def growing(current: Rollout | None, rollout: Rollout) -> list[str]:
    """The versions that are to get a larger share than they have."""
    before = current.shares() if current else {}
    return [version for version, share in rollout.shares().items() if share > before.get(version, 0.0)]


def rollout_of(session: Session, voice: str, generation: int | None) -> Rollout | None:
    row = session.scalar(select(RolloutRow).where(RolloutRow.voice == voice, RolloutRow.generation == generation))
    return as_rollout(row) if row else None


def latest_rollouts(session: Session) -> list[RolloutRow]:
    newest = select(func.max(RolloutRow.id)).group_by(RolloutRow.voice)
    return list(session.scalars(select(RolloutRow).where(RolloutRow.id.in_(newest))))


def as_rollout(row: RolloutRow) -> Rollout:
    return Rollout(row.generation, tuple(Part(version, weight) for version, weight in row.parts), row.previous)


def as_row(voice: str, rollout: Rollout) -> RolloutRow:
    parts = [[part.version, part.weight] for part in rollout.parts]
    return RolloutRow(voice=voice, generation=rollout.generation, parts=parts, previous=rollout.previous)


def no_voice(voice: str) -> NotFoundError:
    return NotFoundError(f"There is no voice {voice!r}.", code="voice_not_found", param="name")


def changed_meanwhile(voice: str) -> ConflictError:
    return ConflictError(
        f"{voice} was changed by someone else meanwhile. Look at it again, then decide.",
        code="changed_meanwhile",
        param="generation",
    )
