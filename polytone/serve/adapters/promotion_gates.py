"""Promotion gates: only by force does a version that failed its evaluation get a larger share."""

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
    """Checks versions by the newest verdicts in a home. `forced` lets failed ones through."""

    home: Home
    forced: bool = False

    def check(self, versions: Iterable[str]) -> dict[str, Any]:
        """Check versions that are to get a larger share. Returns what the audit log must say of them, if any failed.

        Raises:
            CheckError: `gates_failed` with every failed gate of every version, unless forced; `verdict_damaged`.
        """
        verdicts = [read_verdict(self.home, version) for version in sorted(versions)]
        failed = [verdict for verdict in verdicts if verdict is not None and not verdict.passed]
        if failed and not self.forced:
            raise refusal(failed)
        return {"forced": True, "failed_gates": gates_by_version(failed)} if failed else {}


def refusal(failed: list[GateVerdict]) -> CheckError:
    sentences = [sentence for verdict in failed for sentence in verdict.in_words()]
    error = CheckError("\n".join([*sentences, FORCE]), code="gates_failed", param="versions")
    reasons = [CheckError(sentence, code="gates_failed", param="versions") for sentence in sentences]
    error.reasons = combined(reasons).reasons
    return error


def gates_by_version(failed: list[GateVerdict]) -> dict[str, list[str]]:
    return {verdict.version: [reason.gate for reason in verdict.reasons] for verdict in failed}


def evaluations_of(home: Home, versions: Iterable[str]) -> dict[str, Any]:
    """The gates that versions failed, and the versions that were never evaluated on this machine."""
    verdicts = {version: verdict_if_readable(home, version) for version in sorted(versions)}
    failed = [verdict for verdict in verdicts.values() if verdict is not None and not verdict.passed]
    return {
        "failed_gates": gates_by_version(failed),
        "not_evaluated": [version for version, verdict in verdicts.items() if verdict is None],
    }


def verdict_if_readable(home: Home, version: str) -> GateVerdict | None:
    """A version's verdict; None for a damaged one too, since taking share from a version must never fail."""
    try:
        return read_verdict(home, version)
    except CheckError:
        return None
