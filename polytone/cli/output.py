"""Results as commands print them."""

import json
from typing import Any


def tell(document: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
    elif document["state"] == "no server":
        print(f"{sentence} once a server runs: polytone serve")
    else:
        print(f"{sentence}.")
