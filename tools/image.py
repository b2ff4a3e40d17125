"""Build the container image where no container engine runs, and prove what docs/container.md promises of it.

    python3.11 tools/image.py wheels requirements/cpu.txt    # every wheel of a lock into build/wheels
    python3.11 tools/image.py build                          # on a Debian 12 made here, or on --base IMAGE
    python3.11 tools/image.py prove                          # serve a voice from it: read-only, not as root, no network

Needs root and Debian's packages buildah, debootstrap and runc. What is proven takes a base and a voice from --home.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from install import PIP, TORCH_INDEX

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "build" / "wheels"
BASE = "localhost/polytone-base:bookworm"
SUITE = "bookworm"
SECCOMP = Path("/usr/share/containers/seccomp.json")
START_SECONDS = 300
STOP_SECONDS = 60
BUILD_TOOLS = ("as", "c++", "cc", "clang", "cmake", "g++", "gcc", "ld", "make", "nvcc")

# What runs inside, by the image's own Python.
READY = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"
CHAT = """
import json, sys, httpx
key, voice = sys.argv[1:]
body = {"model": voice, "messages": [{"role": "user", "content": "My order is late."}], "max_tokens": 40}
url, headers = "http://127.0.0.1:8000/v1/chat/completions", {"authorization": f"Bearer {key}"}
said = httpx.post(url, json=body, headers=headers, timeout=120)
answer = said.json()
text = answer["choices"][0]["message"]["content"] if said.status_code == 200 else ""
print(json.dumps({"status": said.status_code, "model": answer.get("model"), "text": text}))
"""
PACKAGES = """
import json
from importlib.metadata import distributions
sizes = {
    one.name: sum(file.locate().stat().st_size for file in one.files or () if file.locate().is_file())
    for one in distributions()
}
print(json.dumps(sizes))
"""


def main() -> int:
    options = read_arguments()
    if options.step == "wheels":
        fetch_wheels(options.locks)
    elif options.step == "build":
        build(options.target, options.base or make_base(), options.cluster, options.pip)
    else:
        prove(options.target, options.cluster, options.home)
    return 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    wheels = steps.add_parser("wheels", help="fetch every wheel of these locks into build/wheels")
    wheels.add_argument("locks", type=Path, nargs="+")
    building = steps.add_parser("build", help="build the image")
    building.add_argument("--base", help="image with Debian 12 and Python 3.11; without, one is made with debootstrap")
    building.add_argument("--pip", type=Path, help="pip.conf to install by; it does not get into the image")
    proving = steps.add_parser("prove", help="run the image and check every promise")
    proving.add_argument("--home", type=Path, default=ROOT / ".polytone", help="has a base and a voice; is copied")
    for step in (building, proving):
        step.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
        step.add_argument("--cluster", action="store_true", help="the image with Ray Serve in it")
    return parser.parse_args()


def fetch_wheels(locks: Sequence[Path]) -> None:
    """As tools/install.py installs: nothing is resolved, and PyTorch's index is asked for its own wheel only."""
    lines = [line.strip() for lock in locks for line in lock.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    local = [pin for pin in pins if "+cpu" in pin]
    fetch = [*PIP, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(WHEELS)]
    for pin in local:
        if not succeeds(*fetch, pin):
            run(*fetch, "--extra-index-url", TORCH_INDEX, pin)
    run(*fetch, *[pin for pin in pins if pin not in local])
    print(f"{WHEELS}: {len(list(WHEELS.glob('*.whl')))} wheels")


def make_base() -> str:
    """Debian 12 with its own Python 3.11 and little else, from the mirror that apt is configured with."""
    if succeeds("buildah", "inspect", "--type", "image", BASE):
        return BASE
    wanted = ("Created-By: Packages", f"Codename: {SUITE}", "Component: main")
    mirrors = said_by("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    if not mirrors:
        sys.exit(f"apt has no source for {SUITE} to make a base from. Name one: --base IMAGE")
    with tempfile.TemporaryDirectory(prefix="polytone-base.") as folder:
        run("debootstrap", "--variant=minbase", "--include=python3", SUITE, folder, mirrors[0])
        run("chroot", folder, "sh", "-c", "apt-get clean && rm -r /var/lib/apt/lists/*")
        with working_container("scratch") as container:
            run("buildah", "add", "--quiet", container, folder, "/")
            run("buildah", "commit", "--quiet", container, BASE)
    return BASE


def build(target: str, base: str, cluster: bool, pip: Path | None) -> None:
    arguments = ("--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"CLUSTER={cluster:d}")
    secret = ("--secret", f"id=pip,src={pip.absolute()}") if pip else ()
    began = time.monotonic()
    command = ("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--target", target)
    run(*command, *arguments, *secret, "--tag", tag(target, cluster), str(ROOT))
    print(f"{tag(target, cluster)}: built in {time.monotonic() - began:.0f} s")


def prove(target: str, cluster: bool, home: Path) -> None:
    manifests = sorted((home / "adapters").glob("*/*/manifest.json"))
    if not manifests:
        sys.exit(f"{home}: has no voice. Make one first (make demo), or name another home: --home FOLDER")
    version = "@".join(manifests[0].parent.parts[-2:])
    image = tag(target, cluster)
    config = json.loads(said_by("buildah", "inspect", "--type", "image", image))["Docker"]["config"]
    with working_container(image) as container, tempfile.TemporaryDirectory(prefix="polytone-proof.") as work:
        root = Path(said_by("buildah", "mount", container))
        sandbox = Sandbox(config, root, Path(work), f"polytone-proof-{os.getpid()}")
        sandbox.fill_data(home)
        print_sizes(sandbox, image)
        prove_first_day(sandbox, version, target)
    print("Every promise was kept.")


def print_sizes(sandbox: "Sandbox", image: str) -> None:
    (listed,) = json.loads(said_by("buildah", "images", "--json", image))
    print(f"{image}: {listed['size']}. Its ten largest packages, in MB:")
    sizes: dict[str, int] = json.loads(sandbox.says("python", "-c", PACKAGES))
    for name in sorted(sizes, key=lambda name: -sizes[name])[:10]:
        print(f"  {sizes[name] / 1e6:4.0f}  {name}")


def prove_first_day(sandbox: "Sandbox", version: str, target: str) -> None:
    """The steps of docs/container.md in their order, with the image's own command and health check."""
    voice = version.partition("@")[0]
    refused = sandbox.run(*sandbox.command)
    check("without a key it does not serve", refused.returncode == 2 and "keys create" in refused.stderr)
    sandbox.says("polytone", "keys", "create", "--kind", "admin", "--name", "operator")
    key = sandbox.says("polytone", "keys", "create", "--name", "support-bot")
    sandbox.says("polytone", "adapters", "publish", version, "--wait", "0")
    sandbox.says("polytone", "adapters", "promote", version, "--wait", "0")
    began = time.monotonic()
    with sandbox.serving() as server:
        check("its health check passes", server.wait_for(*sandbox.health_check))
        check("it gets ready", server.wait_for("python", "-c", READY))
        print(f"     after {time.monotonic() - began:.0f} s")
        denied = json.loads(server.says("python", "-c", CHAT, "none", voice))
        check("nobody is answered without a key", denied["status"] == 401)
        answer = json.loads(server.says("python", "-c", CHAT, key, voice))
        check("the voice answers over HTTP", answer["model"] == version and bool(answer["text"].strip()))
        print(f"     {version}: {answer['text']!r}")
        prove_confinement(server, target)
    check("it ends when it is told to", server.exit_code == 0)
    written = sorted({path.relative_to(sandbox.data).parts[0] for path in sandbox.data.rglob("*") if path.is_file()})
    print(f"     in /data lie: {', '.join(written)}")


def prove_confinement(server: "Server", target: str) -> None:
    status = dict(line.split(":\t", 1) for line in server.says("cat", "/proc/1/status").splitlines())
    users = set(status["Uid"].split())
    check(f"its server runs as user {', '.join(users)}, not as root", "0" not in users)
    check("without a capability or a way to get one", int(status["CapPrm"], 16) == 0 and status["NoNewPrivs"] == "1")
    for folder in ("/", "/etc", "/opt/polytone", "/usr/bin"):
        refused = server.run("touch", f"{folder}/written")
        check(f"{folder} cannot be written to", refused.returncode != 0 and "Read-only" in refused.stderr)
    check("it has no network but loopback", server.says("ls", "/sys/class/net").split() == ["lo"])
    if target == "cpu":
        found = [name for name in BUILD_TOOLS if server.run("sh", "-c", f"command -v {name}").returncode == 0]
        check(f"it has no build tool{' but ' if found else ''}{', '.join(found)}", not found)


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
            run("runc", "kill", self.name, "TERM")
        try:
            self.exit_code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            run("runc", "delete", "--force", self.name)


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


@contextmanager
def working_container(image: str) -> Iterator[str]:
    container = said_by("buildah", "from", "--pull-never", image)
    try:
        yield container
    finally:
        said_by("buildah", "rm", container)


def tag(target: str, cluster: bool) -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"localhost/polytone:{version}{'-gpu' if target == 'gpu' else ''}{'-cluster' if cluster else ''}"


def check(promise: str, kept: bool) -> None:
    print(f"{'ok ' if kept else 'NOT'}  {promise}", flush=True)
    if not kept:
        sys.exit(1)


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        sys.exit(f"{done.args}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def said_by(*command: str) -> str:
    return output_of(subprocess.run(command, capture_output=True, text=True, check=False))


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command said why
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing. Install Debian's packages buildah, debootstrap and runc.")
