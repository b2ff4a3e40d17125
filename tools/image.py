"""Build the container image where no container engine runs, and prove what docs/container.md promises of it.

    python3.11 tools/image.py wheels requirements/cpu.txt    # every wheel of a lock into build/wheels
    python3.11 tools/image.py build                          # on a Debian 12 made here, or on --base IMAGE
    python3.11 tools/image.py prove                          # serve a voice from it: read-only, not as root, no network

Needs root and Debian's packages buildah, debootstrap and runc. What is proven takes a base and a voice from --home.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from install import EXACTLY, PIP, run_with_torch, torch_requirements
from sandbox import Sandbox, Server, output_of

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "build" / "wheels"
BASE = "localhost/polytone-base:bookworm"
SUITE = "bookworm"
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


def fetch_wheels(locks: list[Path]) -> None:
    """As tools/install.py installs: nothing is resolved, and PyTorch's index is asked for its own wheel only."""
    download = ["download", "--quiet", *EXACTLY, "--dest", str(WHEELS)]
    for requirement in torch_requirements(locks):
        if not run_with_torch(download, requirement):
            sys.exit(1)
    run(*PIP, *download, "--find-links", str(WHEELS), *(f"--requirement={lock}" for lock in locks))
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


def print_sizes(sandbox: Sandbox, image: str) -> None:
    (listed,) = json.loads(said_by("buildah", "images", "--json", image))
    print(f"{image}: {listed['size']}. Its ten largest packages, in MB:")
    sizes: dict[str, int] = json.loads(sandbox.says("python", "-c", PACKAGES))
    for name in sorted(sizes, key=lambda name: -sizes[name])[:10]:
        print(f"  {sizes[name] / 1e6:4.0f}  {name}")


def prove_first_day(sandbox: Sandbox, version: str, target: str) -> None:
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


def prove_confinement(server: Server, target: str) -> None:
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
