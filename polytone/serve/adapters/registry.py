"""The registry: which versions should be served, and which of them answer for a voice. Lives in the database.

Every change is one transaction with its line in the audit log. A change that repeats what already is changes nothing.
Changes of one voice come one after the other, from whichever replica: each begins where the one before it ended.
"""

from collections.abc import Sequence
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
    """What every replica should come to: versions to hold, and who answers for each voice."""

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
        """Ask every replica to load `version`; a retired one comes back. Returns whether that changed anything."""
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
            expected: the generation this change replaces; 0 where there is none yet.
            gates: what versions must have passed whose share grows; without it nothing.

        Raises:
            InputError: `rollout_invalid`, `alias_mismatch`, `invalid_name`.
            CheckError: `gates_failed`, `verdict_damaged`.
            NotFoundError: `version_not_published`.
            ConflictError: `changed_meanwhile` if the voice is not at `expected`, or another change was faster.
        """
        check_parts(voice, parts)
        try:
            with writing(self._database) as session:
                one_at_a_time(session, f"voice {voice}")
                for part in sorted(parts, key=lambda part: part.version):
                    row = session.get(VersionRow, part.version, with_for_update=True)
                    if row is None or row.state != PUBLISHED:
                        raise NotFoundError(
                            f"{part.version} is not published. Run: polytone adapters publish {part.version}",
                            code="version_not_published",
                            param="version",
                        )
                current = latest_rollout(session, voice)
                check_expected(voice, current, expected)
                if current is not None and as_rollout(current).parts == tuple(parts):
                    return as_rollout(current)
                forced = gates.check(growing(current, parts)) if gates is not None else {}
                before = as_rollout(current).as_json() if current is not None else None
                made = RolloutRow(
                    voice=voice,
                    generation=current.generation + 1 if current else 1,
                    parts=[[part.version, part.weight] for part in parts],
                    previous=current.generation if current else None,
                )
                session.add(made)
                audit.record(session, actor, action, voice, before, {**as_rollout(made).as_json(), **forced})
                return as_rollout(made)
        except IntegrityError:
            raise changed_meanwhile(voice) from None

    def promote(
        self, voice: str, version: str, actor: str, expected: int | None = None, gates: Gates | None = None
    ) -> Rollout:
        """Let `version` alone answer for `voice`."""
        return self.roll_out(voice, [Part(version, 100)], actor, expected, action="promote", gates=gates)

    def roll_back(self, voice: str, actor: str, expected: int | None = None) -> Rollout:
        """Go back to the rollout before the last; again goes back further.

        Raises:
            NotFoundError: `voice_not_found`.
            CheckError: `nothing_to_roll_back_to`, also where a version of that rollout was retired since.
            ConflictError: `changed_meanwhile`.
        """
        try:
            with writing(self._database) as session:
                one_at_a_time(session, f"voice {voice}")
                current = latest_rollout(session, voice)
                if current is None:
                    raise NotFoundError(f"There is no voice {voice!r}.", code="voice_not_found", param="name")
                check_expected(voice, current, expected)
                target = rollout_of(session, voice, current.previous) if current.previous is not None else None
                if target is None:
                    raise CheckError(
                        f"{voice} has no earlier rollout to go back to.", code="nothing_to_roll_back_to", param="name"
                    )
                for version, _ in target.parts:
                    row = session.get(VersionRow, version, with_for_update=True)
                    if row is None or row.state != PUBLISHED:
                        raise CheckError(
                            f"{voice} cannot go back: {version} was retired. Publish it again first: "
                            f"polytone adapters publish {version}",
                            code="nothing_to_roll_back_to",
                            param="name",
                        )
                made = RolloutRow(
                    voice=voice, generation=current.generation + 1, parts=target.parts, previous=target.previous
                )
                session.add(made)
                audit.record(
                    session, actor, "rollback", voice, as_rollout(current).as_json(), as_rollout(made).as_json()
                )
                return as_rollout(made)
        except IntegrityError:
            raise changed_meanwhile(voice) from None

    def remove_voice(self, voice: str, actor: str) -> list[str]:
        """Let nobody answer for `voice`; returns the versions that did, which stay published."""
        try:
            with writing(self._database) as session:
                one_at_a_time(session, f"voice {voice}")
                current = latest_rollout(session, voice)
                if current is None or not current.parts:
                    raise NotFoundError(f"There is no voice {voice!r}.", code="voice_not_found", param="name")
                before = as_rollout(current)
                session.add(
                    RolloutRow(voice=voice, generation=current.generation + 1, parts=[], previous=current.generation)
                )
                audit.record(session, actor, "remove_voice", voice, before.as_json(), None)
                return [part.version for part in before.parts]
        except IntegrityError:
            raise changed_meanwhile(voice) from None

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


def growing(current: RolloutRow | None, parts: list[Part]) -> list[str]:
    """The versions that are to answer a larger share than they do."""
    before = shares(as_rollout(current).parts) if current is not None else {}
    return [version for version, share in shares(parts).items() if share > before.get(version, 0.0)]


def shares(parts: Sequence[Part]) -> dict[str, float]:
    total = sum(part.weight for part in parts)
    return {part.version: part.weight / total for part in parts} if total else {}


def check_expected(voice: str, current: RolloutRow | None, expected: int | None) -> None:
    if expected is not None and expected != (current.generation if current else 0):
        raise changed_meanwhile(voice)


def changed_meanwhile(voice: str) -> ConflictError:
    return ConflictError(
        f"{voice} was changed by someone else meanwhile. Look at it again, then decide.",
        code="changed_meanwhile",
        param="generation",
    )


def latest_rollouts(session: Session) -> list[RolloutRow]:
    newest = select(func.max(RolloutRow.id)).group_by(RolloutRow.voice)
    return list(session.scalars(select(RolloutRow).where(RolloutRow.id.in_(newest))))


def latest_rollout(session: Session, voice: str) -> RolloutRow | None:
    return session.scalar(
        select(RolloutRow).where(RolloutRow.voice == voice).order_by(RolloutRow.generation.desc()).limit(1)
    )


def rollout_of(session: Session, voice: str, generation: int) -> RolloutRow | None:
    return session.scalar(select(RolloutRow).where(RolloutRow.voice == voice, RolloutRow.generation == generation))


def as_rollout(row: RolloutRow) -> Rollout:
    return Rollout(row.generation, tuple(Part(version, weight) for version, weight in row.parts), row.previous)
