"""The base class of models at a border, and validation errors in words."""

import json
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """Data from a file or a request: an unknown field is refused, and nothing is assigned later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def describe_problems(problems: Iterable[object]) -> str:
    """Several of pydantic's errors as `field: problem; field: problem`."""
    return "; ".join(describe_problem(problem) for problem in problems)


def describe_problem(problem: object) -> str:
    """One of pydantic's errors as `field: problem`."""
    record = json.loads(json.dumps(problem, default=str))
    field = ".".join(str(part) for part in record["loc"]) or "row"
    return f"{field}: {str(record['msg']).removeprefix('Value error, ')}"
