"""polytone data: what is in a file of conversations, and the same without what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .exit_codes import ExitCode
from .options import HomeOption, JsonOption

if TYPE_CHECKING:
    from polytone.train.dataset.check import Options
    from polytone.train.dataset.clean import Cleaned
    from polytone.train.dataset.personal import Hit

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        help="JSON lines, JSON, CSV or Parquet: messages, ShareGPT, Alpaca, prompt and completion.", show_default=False
    ),
]
HeldOutOption = Annotated[list[Path] | None, typer.Option(help="Rows to measure on, which must not be learned from.")]
BaseOption = Annotated[str | None, typer.Option(help="Count lengths in tokens of this prepared base; else in words.")]
RegionOption = Annotated[
    list[str] | None, typer.Option(help="Country whose phone numbers are known without a prefix; US and GB by default.")
]
PresidioOption = Annotated[
    bool, typer.Option("--presidio", help="Look for personal data with Microsoft Presidio too (an extra to install).")
]

data_commands = typer.Typer(help="Look into conversations before a voice learns from them.", no_args_is_help=True)


@data_commands.command("check")
def check_data(
    files: FilesArgument,
    held_out: HeldOutOption = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and plots.")] = None,
    base: BaseOption = None,
    region: RegionOption = None,
    presidio: PresidioOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a file of conversations and what is wrong with it: broken rows, copies, rows that leaked from
    the held-out file, contradictions, damaged letters, personal data, topics, and whether people are answered alike.

    Exit code 1 if a row is broken or leaked, 2 if a file cannot be read at all, else 0. Nothing is changed."""
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.dataset.check import check
    from polytone.train.dataset.report_files import write_report
    from polytone.train.dataset.terminal import show

    with Progress(Console(stderr=True)) as progress:
        made = check(files, held_out or [], options(read_home(home), base, region, presidio), progress)
    if report:
        write_report(report, made)
    if as_json:
        print(made.model_dump_json(by_alias=True))
    else:
        show(
            made,
            f"The full list is in {report / 'report.json'}."
            if report
            else "For the full list add --report FOLDER or --json.",
        )
    if not made.passed:
        raise typer.Exit(ExitCode.FAILED)


@data_commands.command("clean")
def clean_data(
    files: FilesArgument,
    out: Annotated[
        Path, typer.Option(help="The new file, JSON lines; OUT.changes.jsonl beside it says what was done.")
    ],
    held_out: HeldOutOption = None,
    keep_personal: Annotated[bool, typer.Option("--keep-personal", help="Leave personal data as it is.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over an OUT that exists.")] = False,
    region: RegionOption = None,
    presidio: PresidioOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a new file without broken rows, copies and rows that leaked from the held-out file, with damaged letters
    mended and personal data masked: [EMAIL], [PHONE], [CARD], [IBAN].

    Of copies the first stays. Contradictions stay too: which answer is right is for you to say. Nothing is done to the
    files you name, and cleaning the new file again changes nothing."""
    from polytone.train.dataset.clean import changes_path

    for target in (out, changes_path(out)):
        refuse_target(target, [*files, *(held_out or [])], force)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.dataset.clean import clean

    with Progress(Console(stderr=True)) as progress:
        made = clean(
            files, held_out or [], out, options(read_home(home), None, region, presidio), keep_personal, progress
        )
    tell(made, as_json)


def refuse_target(target: Path, inputs: list[Path], force: bool) -> None:
    if any(target.resolve() == one.resolve() for one in inputs):
        raise InputError(
            f"--out: {target} is one of the files to read. Name another.", code="output_is_input", param="out"
        )
    if target.is_dir() or (target.exists() and not force):
        raise InputError(f"--out: {target} exists. Name another, or add --force.", code="output_exists", param="out")


def options(home: Home, base: str | None, regions: list[str] | None, presidio: bool) -> "Options":
    from polytone.train.dataset.check import Options
    from polytone.train.dataset.lengths import counter
    from polytone.train.dataset.personal import REGIONS

    unit, count = counter(home, base)
    return Options(unit, count, known_regions(regions or list(REGIONS)), further_finder() if presidio else None)


def known_regions(regions: list[str]) -> list[str]:
    from phonenumbers import SUPPORTED_REGIONS

    named = [region.upper() for region in regions]
    unknown = [region for region in named if region not in SUPPORTED_REGIONS]
    if unknown:
        raise InputError(
            f"--region: {', '.join(unknown)} is no country with phone numbers. Write two letters, such as DE.",
            code="region_unknown",
            param="region",
        )
    return named


def further_finder() -> Callable[[str], "list[Hit]"]:
    from polytone.train.dataset.presidio import presidio_finder

    return presidio_finder()


def tell(made: "Cleaned", as_json: bool) -> None:
    changed = len(made.changes) - made.dropped
    if as_json:
        written = {"out": str(made.out), "changes": str(made.changes_file), "rows": made.rows}
        print(json.dumps({**written, "dropped": made.dropped, "changed": changed}))
        return
    print(
        f"{made.out}: {made.rows} rows; {made.dropped} times a row was dropped and {changed} times one was changed.\n"
        f"What was done to which row: {made.changes_file}"
    )
