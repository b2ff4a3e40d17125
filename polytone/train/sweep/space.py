"""The recipes that a sweep may try: values for dotted recipe keys, each checked as a recipe."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from polytone.contract.errors import InputError
from polytone.train.recipe import Recipe, Span, SweepSection, contradictions, explain

SWEPT = ("lora", "training", "system_prompt")


def check_space(recipe: Recipe) -> SweepSection:
    """The recipe's sweep section, if every value in it makes a recipe.

    Raises:
        InputError: `sweep_missing`, or `sweep_invalid` with every key and value that does not fit.
    """
    if recipe.sweep is None:
        raise InputError(
            f"{recipe.name}: has no sweep section. Add what to try, such as "
            "sweep: {trials: 8, over: {training.learning_rate: {low: 0.0001, high: 0.01, log: true}}}",
            code="sweep_missing",
            param="sweep",
        )
    problems = list(bad_values(recipe, recipe.sweep))
    if problems:
        raise InputError("\n".join(problems), code="sweep_invalid", param="sweep.over")
    return recipe.sweep


def bad_values(recipe: Recipe, sweep: SweepSection) -> Iterator[str]:
    for key, choice in sweep.over.items():
        if sweep.method == "grid" and isinstance(choice, Span):
            yield f"sweep.over.{key}: grid tries lists of values; write them out."
            continue
        if reason := incomparable(recipe, key):
            yield f"sweep.over.{key}: {reason}"
            continue
        for value in [choice.low, choice.high] if isinstance(choice, Span) else choice:
            try:
                problems = [
                    f"{field}: {problem}" for field, problem in contradictions(with_values(recipe, {key: value}))
                ]
            except ValidationError as error:
                problems = [explain(problem) for problem in error.errors()]
            # A contradiction that a value of another key may resolve is left to the trial.
            if problems and (len(sweep.over) == 1 or problems[0].startswith(key)):
                yield f"sweep.over.{key}: {value!r}: {problems[0]}"


def incomparable(recipe: Recipe, key: str) -> str | None:
    """Why trials that differ in this key cannot be compared; None if they can."""
    if key.split(".", maxsplit=1)[0] not in SWEPT:
        return f"trials are compared on the same held-out rows of one base; sweep keys of {', '.join(SWEPT)}."
    if key == "training.seed" and recipe.data.held_out is None:
        return "the seed also draws the held-out rows; name data.held_out, so that trials are measured on the same."
    return None


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with some dotted keys set, checked like one read from a file."""
    content = recipe.model_dump(exclude_unset=True, exclude={"sweep"})
    for key, value in values.items():
        *above, last = key.split(".")
        section = content
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return Recipe.model_validate(content)


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def draw(trial: Any, sweep: SweepSection) -> dict[str, Any]:
    """Values for one trial of an Optuna study; lists within a list are drawn by their index."""
    return {key: draw_one(trial, key, choice) for key, choice in sweep.over.items()}


def draw_one(trial: Any, key: str, choice: list[Any] | Span) -> Any:
    if isinstance(choice, list):
        if all(isinstance(value, str | int | float | bool | None) for value in choice):
            return trial.suggest_categorical(key, choice)
        return choice[trial.suggest_categorical(f"{key} #", list(range(len(choice))))]
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return trial.suggest_int(key, choice.low, choice.high, log=choice.log, step=int(choice.step or 1))
    return trial.suggest_float(key, float(choice.low), float(choice.high), log=choice.log, step=choice.step)
