"""Wait until every running server has taken up a change."""

import time
from collections.abc import Callable

from polytone.contract.errors import CheckError
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.adapters.rollout import Rollout

ANSWERING = ("ready", "published")


def wait_until_ready(replicas: Replicas, version: str, seconds: float) -> str:
    """Wait until every running server has the version ready, or knows it and loads it when it is asked for.

    Returns and raises as `wait_until` does.
    """

    def ready() -> bool:
        answering = {one.replica for one in replicas.residency() if one.version == version and one.state in ANSWERING}
        return answering == replicas.living()

    return wait_until(ready, replicas, frozenset([version]), seconds, f"{version} was not ready")


def wait_until_routed(replicas: Replicas, voice: str, rollout: Rollout, seconds: float) -> str:
    """Wait until every running server answers for the voice with this rollout or a later one.

    Returns and raises as `wait_until` does.
    """

    def routed() -> bool:
        generations = [routes.get(voice) for routes in replicas.routes().values()]
        if not rollout.parts:
            return not any(generations)
        return all(generation is not None and generation >= rollout.generation for generation in generations)

    return wait_until(routed, replicas, rollout.versions, seconds, f"the new rollout of {voice} was not in place")


def wait_until(
    done: Callable[[], bool], replicas: Replicas, versions: frozenset[str], seconds: float, problem: str
) -> str:
    """Poll until `done`.

    Returns "ready", "asked for" if `seconds` is 0, or "no server" if none is running.

    Raises:
        CheckError: `version_failed` with the reason a server gave for one of `versions`, or `not_ready_in_time`.
    """
    if not replicas.living():
        return "no server"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return "ready"
        for one in replicas.residency():
            if one.version in versions and one.state == "failed":
                raise CheckError(f"{one.version} failed on {one.replica}: {one.reason}", code="version_failed")
        time.sleep(0.2)
    if seconds == 0:
        return "asked for"
    raise CheckError(
        f"{problem} within {seconds:.0f} s. It may still come; look again: polytone adapters list",
        code="not_ready_in_time",
    )
