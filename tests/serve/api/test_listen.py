"""Two servers never believe that they have the same port."""

import pytest

from polytone.contract.errors import InputError
from polytone.serve.server import listen
from tests.support.processes import free_port


def test_a_port_is_taken_before_the_engine_starts() -> None:
    """Bound only, it could be bound by another too, who then failed a minute later, when its engine was up."""
    port = free_port()
    with listen("127.0.0.1", port), pytest.raises(InputError, match=f"--port {port + 1}") as refused:
        listen("127.0.0.1", port)
    assert refused.value.code == "port_in_use"
