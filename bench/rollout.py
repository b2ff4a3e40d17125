"""A voice trained and promoted while streams run: no stream fails, and the voice answers without a restart.

Four streams run over base and voices without a pause while the recipe is trained by the ordinary command, published
and promoted. Exit code 1 if a stream failed, answered under another name, or the new voice does not answer.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

from openai import AsyncOpenAI, OpenAIError

from bench.running import base_of, home_from_environment, server, voices
from polytone.train.recipe import read_recipe

RECIPE = Path(__file__).resolve().parent.parent / "examples" / "mosswick" / "recipe.yaml"
STREAMS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; without it one is started on the home folder")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe of the voice that arrives")
    options = parser.parse_args()
    home = home_from_environment()
    with server(options.url, home, home.root / "soak" / "rollout.log") as url:
        return asyncio.run(roll_out(url, options.recipe, str(home.root)))


async def roll_out(url: str, recipe: Path, home: str) -> int:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    arriving = read_recipe(recipe).name
    if arriving in voices(url):  # from an earlier run of this proof
        await polytone(home, "adapters", "retire", arriving)
    known = {model: version for model, version in voices(url).items() if model != arriving}
    base = base_of(url)
    models = [base, *(model for model in known if model != base)]
    stop, finished, failures = asyncio.Event(), 0, list[str]()

    async def stream_on(model: str) -> None:
        nonlocal finished
        while not stop.is_set():
            try:
                if problem := await one_stream(client, model, known[model]):
                    failures.append(problem)
                finished += 1
            except OpenAIError as error:
                failures.append(f"{model}: {error}")

    streams = [asyncio.create_task(stream_on(models[index % len(models)])) for index in range(STREAMS)]
    began = time.monotonic()
    try:
        trained = json.loads(await polytone(home, "train", str(recipe), "--json"))["version"]
        await polytone(home, "adapters", "publish", trained)
        await polytone(home, "adapters", "promote", trained)
        answer = await client.chat.completions.create(
            model=arriving, messages=[{"role": "user", "content": "Where is my order?"}], max_tokens=60, temperature=0
        )
    finally:
        stop.set()
        await asyncio.gather(*streams)
    print(f"{finished} streams finished in {time.monotonic() - began:.0f} s, {len(failures)} failed")
    print("\n".join(failures[:10]))
    print(f"{answer.model}: {answer.choices[0].message.content}")
    return 0 if not failures and finished >= STREAMS and answer.model == trained else 1


async def one_stream(client: AsyncOpenAI, model: str, version: str) -> str | None:
    """Stream one answer; returns what was wrong with it."""
    named, reason = set(), None
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Tell me about returns."}], max_tokens=48, stream=True
    )
    async for chunk in stream:
        named.add(chunk.model)
        reason = (chunk.choices[0].finish_reason if chunk.choices else None) or reason
    if named != {version} or reason not in ("stop", "length"):
        return f"{model}: answered as {named}, ended by {reason}"
    return None


async def polytone(home: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "polytone",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "POLYTONE_HOME": home},
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"polytone {' '.join(arguments)} ended with {process.returncode}")
    return output.decode()


if __name__ == "__main__":
    sys.exit(main())
