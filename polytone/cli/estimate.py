"""polytone estimate: the memory that training a model needs, from its configuration alone."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.serve.settings import read_home
from polytone.train.memory.devices import GB, Card, common_cards, has_gpu, parse_size, this_machine
from polytone.train.memory.known_models import find_shape
from polytone.train.memory.plan import DTYPE_BYTES, EVALUATION_ROWS, METHODS, OPTIMIZERS, Device, Loss
from polytone.train.memory.report import Scenario, report_of
from polytone.train.memory.shape import Shape
from polytone.train.recipe import LoraSection, TrainingSection

from .options import HomeOption, JsonOption

LARGEST_RANK = 4096
LARGEST_NUMBER = 1 << 20
# A recipe's defaults.
BATCH, LENGTH, RANK = TrainingSection().micro_batch, TrainingSection().max_length, LoraSection().rank
Problem = tuple[str, str]  # an option and the problem with its value


def estimate(
    model: Annotated[
        str, typer.Argument(help="A known name (mistral-7b), a prepared base, a folder, a config.json or a hub id.")
    ],
    method: Annotated[str, typer.Option(help="Method whose items are listed: full, lora or qlora.")] = "qlora",
    batch: Annotated[
        str, typer.Option(help="Rows in memory at a time (training.micro_batch); several as 1,4,8.")
    ] = str(BATCH),
    length: Annotated[str, typer.Option(help="Tokens of the longest row; several as 512,2048.")] = str(LENGTH),
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = RANK,
    targets: Annotated[str, typer.Option(help="all-linear, or names such as q_proj,v_proj.")] = "all-linear",
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; by default the device's.")] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = "adamw",
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Gradient checkpointing; by default on a GPU only."),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="supervised (Polytone on a CPU), chunked (TRL) or whole (transformers).")
    ] = None,
    supervised: Annotated[float | None, typer.Option(help="Share of the tokens that are the assistant's.")] = None,
    held_out: Annotated[
        int, typer.Option(min=0, help="Rows the voice is measured on after training; 0 for training alone.")
    ] = EVALUATION_ROWS,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda, for a prepared base this machine.")
    ] = None,
    card: Annotated[list[str] | None, typer.Option(help="A size such as 24GB; give it again for several.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the memory of full fine-tuning, LoRA and QLoRA, from a model's configuration alone."""
    target_names = () if targets == "all-linear" else tuple(name.strip() for name in targets.split(","))
    chosen = {
        "rank": rank,
        "targets": target_names,
        "dtype": dtype,
        "optimizer": optimizer,
        "checkpointing": checkpointing,
        "loss": loss,
        "supervised": supervised,
        "evaluation_rows": min(held_out, EVALUATION_ROWS),
    }
    problems = [*option_problems(method, device, chosen), *list_problems(batch=batch, length=length)]
    cards = readable_cards(card or [], problems)
    shape, local = shape_or_refusal(model, read_home(home), problems)
    if problems := [*problems, *target_problems(shape, target_names)]:
        raise refusal(problems, code="estimate_invalid")
    on_cpu = device == "cpu" or (device is None and local and not has_gpu())
    scenario = Scenario(shape, "cpu" if on_cpu else "cuda", chosen)
    grid = [(rows, tokens) for tokens in numbers(length) for rows in numbers(batch)]
    places = [Card(one.name, one.bytes, scenario.device) for one in cards] or default_cards(scenario.device)
    report = report_of(scenario, next(one for one in METHODS if one == method), grid, places)
    if as_json:
        print(json.dumps(report))
    else:
        show(Console(), report)


def option_problems(method: str, device: str | None, chosen: dict[str, Any]) -> Iterator[Problem]:
    """Options with the problem of each."""
    allowed = {
        "method": (method, METHODS),
        "device": (device, get_args(Device)),
        "dtype": (chosen["dtype"], tuple(DTYPE_BYTES)),
        "optimizer": (chosen["optimizer"], tuple(OPTIMIZERS)),
        "loss": (chosen["loss"], get_args(Loss)),
    }
    for option, (value, choices) in allowed.items():
        if value is not None and value not in choices:
            yield option, f"{value!r} is none of {', '.join(choices)}."
    if not 1 <= chosen["rank"] <= LARGEST_RANK:
        yield "rank", f"{chosen['rank']} is not between 1 and {LARGEST_RANK}."
    if chosen["supervised"] is not None and not 0 < chosen["supervised"] <= 1:
        yield "supervised", f"{chosen['supervised']:g} is not a share above 0 and up to 1."


def list_problems(**lists: str) -> Iterator[Problem]:
    for option, text in lists.items():
        for part in text.split(","):
            word = part.strip()
            if not word.isdecimal() or not 1 <= int(word) <= LARGEST_NUMBER:
                yield option, f"{word!r} is not a whole number from 1 to {LARGEST_NUMBER}."


def readable_cards(sizes: list[str], problems: list[Problem]) -> list[Card]:
    """The cards of `--card`; sizes that cannot be read are added to `problems`."""
    cards = []
    for size in sizes:
        memory = parse_size(size)
        if memory:
            cards.append(Card(size.strip(), memory, "cuda"))
        else:
            problems.append(("card", f"{size!r} is not a size of memory. Write 24GB, 24GiB or 24000MB."))
    return cards


def shape_or_refusal(model: str, home: Home, problems: list[Problem]) -> tuple[Shape, bool]:
    """As `find_shape`; an unknown model is reported together with the other problems."""
    try:
        return find_shape(model, home)
    except InputError as error:
        raise refusal([("MODEL", error.message), *problems], code=error.code) from None


def refusal(problems: list[Problem], *, code: str) -> InputError:
    lines = [text if option == "MODEL" else f"--{option}: {text}" for option, text in problems]
    return InputError("\n".join(lines), code=code, param=problems[0][0].lower())


def target_problems(shape: Shape, targets: tuple[str, ...]) -> Iterator[Problem]:
    modules = [linear.name for linear in shape.linears]
    for name in targets:
        if name not in modules:
            yield "targets", f"{name!r} is not a linear layer of this model, which has {', '.join(modules)}."


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def default_cards(device: Device) -> list[Card]:
    """This machine, and for a GPU the usual cards."""
    return [*(common_cards() if device == "cuda" else []), this_machine()]


def show(console: Console, report: dict[str, Any]) -> None:
    """The report for people: items by method, batches and lengths, and what fits where."""
    console.print(
        f"{report['model']}: {report['parameters']:,} parameters. Memory of training on {report['device']}, in GB "
        f"(10^9 bytes), {report['batch']} rows of {report['length']} tokens at a time:",
        highlight=False,
    )
    console.print(items_table(report), grid_table(report), cards_table(report))
    console.print(f"What {report['method']} assumes:", highlight=False)
    for item in report["items"]:
        if item["bytes"]:
            console.print(f"- {item['name']}: {item['assumption']}.", highlight=False, markup=False)
    console.print(
        "Rows are seldom that long: polytone train RECIPE --check estimates with the lengths of the recipe's own rows.",
        highlight=False,
    )


def items_table(report: dict[str, Any]) -> Table:
    table = Table("", *METHODS)
    for number, item in enumerate(report["items"]):
        sizes = [report["methods"][one]["items"][number]["bytes"] for one in METHODS]
        if any(sizes):
            table.add_row(item["name"], *(f"{size / GB:.3f}" if size else "-" for size in sizes))
    table.add_section()
    table.add_row("total", *(f"{report['methods'][one]['total_bytes'] / GB:.3f}" for one in METHODS))
    return table


def grid_table(report: dict[str, Any]) -> Table:
    table = Table("rows", "tokens", *METHODS)
    for row in report["grid"]:
        sizes = (f"{row['total_bytes'][one] / GB:.2f}" for one in METHODS)
        table.add_row(str(row["batch"]), str(row["length"]), *sizes)
    return table


def cards_table(report: dict[str, Any]) -> Table:
    table = Table("largest batch on", "tokens", *METHODS)
    for card in report["cards"]:
        for length in card["largest_batch"]["full"]:
            batches = (card["largest_batch"][one][length] for one in METHODS)
            table.add_row(card_name(card), length, *(str(rows) if rows else "does not fit" for rows in batches))
    return table


def card_name(card: dict[str, Any]) -> str:
    here = card["name"].startswith("this machine")
    return f"{card['name']}, {card['bytes'] / GB:.1f} GB free" if here else str(card["name"])
