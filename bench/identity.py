"""Served equals trained: the greedy tokens of every fingerprint prompt, over the API, are the trainer's.

Asks for every published voice of a server. Exit code 1 if one token differs.
"""

import argparse
import sys

import httpx

from bench.running import home_from_environment, server, voices
from polytone.contract.adapter import read_version
from polytone.contract.manifest import Probe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; without it one is started on the home folder")
    options = parser.parse_args()
    home = home_from_environment()
    differences = 0
    with server(options.url, home, home.root / "soak" / "identity.log") as url:
        for version in (version for version in voices(url).values() if "@" in version):
            for probe in read_version(home, version).fingerprint.probes:
                same = served_tokens(url, version, probe) == probe.tokens
                differences += not same
                print(f"{version}: {len(probe.tokens)} tokens {'identical' if same else 'DIFFER'}")
    return 1 if differences else 0


def served_tokens(url: str, version: str, probe: Probe) -> list[int]:
    body = {
        "model": version,
        "messages": probe.messages,
        "temperature": 0,
        "max_tokens": len(probe.tokens),
        "return_token_ids": True,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
    return list(response["choices"][0]["token_ids"])


if __name__ == "__main__":
    sys.exit(main())
