"""Estimates of one model as a document: by method, batch size, length and graphics card."""

from dataclasses import replace
from typing import Any

from .devices import Card
from .estimate import Estimate, estimate, largest_batch
from .plan import EVALUATION_ROWS, METHODS, Device, Method, Plan, default_plan
from .shape import Shape

Grid = list[tuple[int, int]]


class Scenario:
    """One model on one device with the options that were chosen; estimates for any method, batch and length."""

    def __init__(self, shape: Shape, device: Device, chosen: dict[str, Any]) -> None:
        self.shape, self.device, self.chosen = shape, device, chosen

    def plan(self, method: Method, batch: int, length: int, device: Device | None = None) -> Plan:
        return default_plan(self.shape, method, device or self.device, batch, length, **self.chosen)

    def estimate(self, method: Method, batch: int, length: int) -> Estimate:
        return estimate(self.shape, self.plan(method, batch, length))

    def run_bytes(self, method: Method, batch: int, length: int) -> int:
        """The peak of a whole `polytone train`, which then measures the voice on held-out rows of that length."""
        plan = replace(self.plan(method, batch, length), evaluation_rows=EVALUATION_ROWS)
        return estimate(self.shape, plan).total_bytes


def report_of(scenario: Scenario, method: Method, grid: Grid, cards: list[Card]) -> dict[str, Any]:
    """The whole answer; totals and items at the top are of `method` at the first batch and length."""
    rows, tokens = grid[0]
    first = {one: scenario.estimate(one, rows, tokens) for one in METHODS}
    lengths = list(dict.fromkeys(length for _, length in grid))
    return {
        "model": scenario.shape.name,
        "parameters": scenario.shape.parameters,
        "method": method,
        "device": scenario.device,
        "batch": rows,
        "length": tokens,
        **of_estimate(first[method]),
        "run_bytes": scenario.run_bytes(method, rows, tokens),
        "methods": {one: of_estimate(found) for one, found in first.items()},
        "grid": [
            {"batch": batch, "length": length}
            | {"total_bytes": {one: scenario.estimate(one, batch, length).total_bytes for one in METHODS}}
            for batch, length in grid
        ],
        "cards": [of_card(scenario, card, rows, lengths) for card in cards],
    }


def of_estimate(found: Estimate) -> dict[str, Any]:
    return {
        "total_bytes": found.total_bytes,
        "items": [{"name": item.name, "bytes": item.bytes, "assumption": item.assumption} for item in found.items],
    }


def of_card(scenario: Scenario, card: Card, batch: int, lengths: list[int]) -> dict[str, Any]:
    """The largest batch that a card takes at each length, and whether the first one asked for fits."""
    largest = {
        one: {
            str(length): largest_batch(scenario.shape, scenario.plan(one, 1, length, card.device), card.bytes)
            for length in lengths
        }
        for one in METHODS
    }
    return {
        "name": card.name,
        "bytes": card.bytes,
        "device": card.device,
        "fits": {one: by_length[str(lengths[0])] >= batch for one, by_length in largest.items()},
        "largest_batch": largest,
    }
