"""Does a rollout give more to a version whose evaluation failed? Only by force, and the audit log says so."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polytone.contract.errors import CheckError, combined
from polytone.contract.evaluation import GateVerdict, read_verdict
from polytone.contract.home import Home

FORCE = (
    "Train a better version, evaluate it again (polytone evaluate), or promote it anyway: "
    '--force on the command line, "force": true over HTTP. The audit log will say so.'
)


@dataclass(frozen=True)
class Gates:
    """The newest verdicts in a home; `forced` lets versions that failed through."""

    home: Home
    forced: bool = False

    def check(self, versions: Iterable[str]) -> dict[str, Any]:
        """What the audit log is to say of versions that are to answer more than before; nothing where none failed.

        Raises:
            CheckError: `gates_failed` with every failed gate of every version, unless forced; `verdict_damaged`.
        """
        verdicts = [read_verdict(self.home, version) for version in sorted(versions)]
        failed = [verdict for verdict in verdicts if verdict is not None and not verdict.passed]
        if failed and not self.forced:
            raise refusal(failed)
        return {"forced": True, "failed_gates": gates_by_version(failed)} if failed else {}


def refusal(failed: list[GateVerdict]) -> CheckError:
    said = [sentence for verdict in failed for sentence in verdict.in_words()]
    error = CheckError("\n".join([*said, FORCE]), code="gates_failed", param="versions")
    error.reasons = combined([CheckError(one, code="gates_failed", param="versions") for one in said]).reasons
    return error


def gates_by_version(failed: list[GateVerdict]) -> dict[str, list[str]]:
    return {verdict.version: [reason.gate for reason in verdict.reasons] for verdict in failed}


def evaluations_of(home: Home, versions: Iterable[str]) -> dict[str, Any]:
    """What an answer says of the versions that are to answer: which failed what, and of which nothing is known here."""
    known = {version: verdict_if_readable(home, version) for version in sorted(versions)}
    failed = [verdict for verdict in known.values() if verdict is not None and not verdict.passed]
    return {
        "failed_gates": gates_by_version(failed),
        "not_evaluated": [version for version, verdict in known.items() if verdict is None],
    }


def verdict_if_readable(home: Home, version: str) -> GateVerdict | None:
    """None for a damaged one too: taking share from a version must never fail."""
    try:
        return read_verdict(home, version)
    except CheckError:
        return None
