"""A server in a process of its own: its port, what it says, how it ends."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from bench.running import free_port
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.database.session import open_database
from polytone.serve.server import listen, warn_of_others
from polytone.serve.settings import Settings
from polytone.serve.supervisor import replica_name
from tests.support.processes import served
from tests.support.serving import HELLO
from tests.support.tiny_home import TinyHome


def test_a_port_is_taken_before_the_engine_starts() -> None:
    """Bound only, it could be bound by another too, who then failed a minute later, when its engine was up."""
    port = free_port()
    with listen("127.0.0.1", port), pytest.raises(InputError, match=f"--port {port + 1}") as refused:
        listen("127.0.0.1", port)
    assert refused.value.code == "port_in_use"


def test_a_second_server_on_a_home_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = open_database(Home(tmp_path).database_url)
    replicas = Replicas(database)
    settings = Settings(home=tmp_path)
    gone = f"{replica_name().rpartition(':')[0]}:{2**22 + 1}"  # more than Linux gives out
    replicas.report(gone, {}, {})
    with caplog.at_level(logging.WARNING):
        warn_of_others(settings, replicas)
        assert not caplog.messages
        replicas.report(replica_name(), {}, {})
        warn_of_others(settings, replicas)
    assert [message.partition(".")[0] for message in caplog.messages] == [
        f"another replica uses this home: {replica_name()}"
    ]
    caplog.clear()
    warn_of_others(Settings(home=tmp_path, database_url="postgresql+psycopg://db/polytone"), replicas)
    assert not caplog.messages  # several servers on one database are how it is meant
    database.dispose()


def test_what_libraries_print_goes_to_the_file_and_log_lines_do_not(tmp_path: Path) -> None:
    program = f"""
import logging, os, pathlib, subprocess, sys
from polytone.serve.logs import prints_in, set_up_logs
set_up_logs(as_json=False)
with prints_in(pathlib.Path({str(tmp_path / "engine.log")!r})):
    print("printed")
    os.write(2, b"from C\\n")
    subprocess.run(["sh", "-c", "echo from a child"], check=True)
    logging.getLogger("polytone").info("told")
print("after")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted((tmp_path / "engine.log").read_text().splitlines()) == ["from C", "from a child", "printed"]
    assert (ran.stdout, ran.stderr.endswith("INFO polytone: told\n")) == ("after\n", True)


@pytest.mark.engine
def test_a_server_says_where_it_is_and_ends_quietly_at_ctrl_c(tiny: TinyHome, tmp_path: Path) -> None:
    """Ctrl-C reaches the engine too. It ended by itself, the server took that for a crash, and Python closed with
    "Exception ignored in AsyncLLM.__del__" and leaked semaphores."""
    with served(tiny.home.root, tmp_path / "log", POLYTONE_BASE="tiny", POLYTONE_CPU_THREADS="1") as server:
        server.until_ready()
        lines: list[str] = []

        def read_stream() -> None:
            body = {"model": "tiny", "stream": True, "max_tokens": 150, "ignore_eos": True, "messages": HELLO}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
                lines.extend(line for line in response.iter_lines() if line)

        reader = threading.Thread(target=read_stream)
        reader.start()
        while not lines:
            time.sleep(0.01)
        began = time.monotonic()
        assert server.interrupt() == 0
        assert time.monotonic() - began < 20
        reader.join()
        assert lines[-1] == "data: [DONE]"
        words = [line.partition(": ")[2] for line in (tmp_path / "log").read_text().splitlines()]
        port = server.url.rpartition(":")[2]
        engine_log = tiny.home.root / f"engine-{port}.log"
        expected = [
            r"no keys: .*",
            rf"starting the engine with tiny; its messages go to {re.escape(os.fspath(engine_log))}",
            r"engine up after \d+ s",
            rf"ready: {server.url}/v1, pages: {server.url}/ui/",
            r"POST /v1/chat/completions 200 .*",
            "stopped",
        ]
        assert len(words) == len(expected), words
        for line, pattern in zip(words, expected, strict=True):
            assert re.fullmatch(pattern, line)
        assert engine_log.stat().st_size > 0
