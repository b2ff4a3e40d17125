"""A root file system run by runc, confined as a container engine would confine it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECCOMP = Path("/usr/share/containers/seccomp.json")
START_SECONDS = 300
STOP_SECONDS = 60


@dataclass(frozen=True)
class Sandbox:
    """An image's root file system, run by runc as an engine would under the settings of deploy/compose.yaml.

    `config` is the image's own: user, environment, command. `work` is a folder for the bundle and for /data.
    """

    config: dict[str, Any]
    root: Path
    work: Path
    name: str

    @property
    def data(self) -> Path:
        return self.work / "data"

    @property
    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @property
    def health_check(self) -> list[str]:
        return list(self.config["Healthcheck"]["Test"][1:])  # the first word says how it is run: CMD

    @property
    def user(self) -> tuple[int, int]:
        uid, _, gid = self.config["User"].partition(":")
        return int(uid), int(gid)

    def fill_data(self, home: Path) -> None:
        for folder in ("bases", "adapters"):
            shutil.copytree(home / folder, self.data / folder)
        for path in (self.data, *self.data.rglob("*")):
            os.chown(path, *self.user)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A container that runs one command and ends."""
        return subprocess.run(self._prepare(command), capture_output=True, text=True, check=False)

    def says(self, *command: str) -> str:
        return output_of(self.run(*command))

    @contextmanager
    def serving(self) -> Iterator["Server"]:
        """A container that runs the image's command until the block ends."""
        log = self.work / "server.log"
        with log.open("w") as file:
            process = subprocess.Popen(self._prepare(self.command), stdout=file, stderr=file)
        server = Server(self.name, process, log)
        try:
            yield server
        finally:
            server.stop()

    def _prepare(self, command: Sequence[str]) -> list[str]:
        (self.work / "config.json").write_text(json.dumps(self._bundle(command)))
        return ["runc", "run", "--bundle", str(self.work), self.name]

    def _bundle(self, command: Sequence[str]) -> dict[str, Any]:
        """The configuration that the OCI runtime specification asks for."""
        uid, gid = self.user
        mounts = (
            ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
            ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
            ("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=64k"]),
            ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]),  # noqa: S108
            ("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", "size=1g"]),  # noqa: S108
            ("/data", "bind", str(self.data), ["bind", "rw", "nosuid", "nodev"]),
        )
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.root), "readonly": True},
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": list(command),
                "env": self.config["Env"],
                "cwd": self.config["WorkingDir"],
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "mounts": [
                {"destination": place, "type": kind, "source": source, "options": options}
                for place, kind, source, options in mounts
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                "seccomp": allowed_calls(),
            },
        }


@dataclass
class Server:
    """The running container."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    exit_code: int | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One more process in the container."""
        return subprocess.run(["runc", "exec", self.name, *command], capture_output=True, text=True, check=False)

    def says(self, *command: str) -> str:
        return output_of(self.run(*command))

    def wait_for(self, *command: str) -> bool:
        """Run the command until it succeeds; False, and the log's end on stderr, if it does not in time."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.run(*command).returncode == 0:
                return True
            time.sleep(1)
        print(self.log.read_text()[-4000:], file=sys.stderr)
        return False

    def stop(self) -> None:
        """SIGTERM, as an engine sends it; `exit_code` stays None if the container has to be killed."""
        if self.process.poll() is None:
            subprocess.run(["runc", "kill", self.name, "TERM"], check=True)
        try:
            self.exit_code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            subprocess.run(["runc", "delete", "--force", self.name], check=True)


def allowed_calls() -> dict[str, Any]:
    """The system calls that engines allow a process without capabilities, from the file that comes with buildah."""
    profile = json.loads(SECCOMP.read_text())
    kept = ("names", "action", "errnoRet", "args")
    rules = []
    for rule in profile["syscalls"]:
        wants, bars = rule.get("includes") or {}, rule.get("excludes") or {}
        here = "amd64" in wants.get("arches", ["amd64"]) and "amd64" not in bars.get("arches", [])
        if here and not wants.get("caps"):
            rules.append({key: rule[key] for key in kept if rule.get(key)})
    return {"defaultAction": profile["defaultAction"], "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        sys.exit(f"{done.args}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout.strip()
