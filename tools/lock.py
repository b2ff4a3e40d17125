"""Write the locks in requirements/ from what pyproject.toml declares: make lock.

    make lock                                       # pins stay where they still fit
    make lock ARGUMENTS="--upgrade-package peft"    # or whatever else `uv pip compile` takes

PyTorch's build for CPUs is not on the default index. It is looked for in the find-links of pip's configuration; where
there are none, set UV_TORCH_BACKEND=cpu, and uv asks PyTorch's own index.
"""

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ("train", "serve", "ui")
UV = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header"]
WHEELS = ["--generate-hashes", "--only-binary", ":all:"]
DEBIAN_12 = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36"]
CPU_ONLY = ["--excludes", "requirements/cpu-excludes.txt", "--overrides", "requirements/cpu-overrides.txt"]
GPU_ONLY = ["--excludes", "requirements/gpu-excludes.txt"]
PIP_TO_UV = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX"}


def main(arguments: list[str]) -> int:
    compile_lock("cpu", [*RUNTIME, "cpu"], [*CPU_ONLY, *arguments])
    compile_lock("gpu", [*RUNTIME, "gpu"], [*GPU_ONLY, *arguments])
    on_cpu = [*CPU_ONLY, "--constraints", "requirements/cpu.txt", *arguments]
    compile_lock("cluster", ["cluster"], on_cpu, without=names_in("cpu") & names_in("gpu"))
    compile_lock("dev", ["dev"], [*on_cpu, "--constraints", "requirements/cluster.txt"], without=names_in("cpu"))
    return 0


def compile_lock(name: str, extras: list[str], arguments: list[str], without: Collection[str] = ()) -> None:
    """Write requirements/NAME.txt, less the packages in `without`, which another lock pins."""
    lock = f"requirements/{name}.txt"
    print(f"{lock} ...", flush=True)
    command = [*UV, *WHEELS, *DEBIAN_12, *arguments, "--output-file", lock, "pyproject.toml"]
    command += [f"--extra={extra}" for extra in extras]
    command += [f"--no-emit-package={package}" for package in sorted(without)]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    """uv does not read pip's configuration; tell it where packages come from."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    return {**{uv: settings[pip] for pip, uv in PIP_TO_UV.items() if pip in settings}, **os.environ}


def names_in(lock: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.MULTILINE))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # uv said why
