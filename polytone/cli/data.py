"""polytone data: check, clean and split files of conversations."""

import json
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
    from polytone.train.dataset.clean import Cleaned, Personal

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        help="JSON lines, JSON, CSV or Parquet: messages, ShareGPT, Alpaca, prompt and completion.", show_default=False
    ),
]
HeldOutOption = Annotated[list[Path] | None, typer.Option(help="Rows to measure on, which must not be trained on.")]
BaseOption = Annotated[str | None, typer.Option(help="Count lengths in tokens of this prepared base instead of words.")]
RegionOption = Annotated[
    list[str] | None, typer.Option(help="Country whose phone numbers need no prefix; US and GB by default.")
]
PresidioOption = Annotated[
    bool, typer.Option("--presidio", help="Also look for personal data with Microsoft Presidio (an extra to install).")
]

OverwriteOption = Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")]

data_commands = typer.Typer(
    help="Check, clean and split conversations before a voice is trained on them.", no_args_is_help=True
)


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
    """Report the content of conversations and their problems: broken rows, copies, rows that leaked from the held-out
    file, contradictions, damaged characters, personal data, topics, and differences between groups of people.

    Exit code 1 if a row is broken or leaked, 2 if a file cannot be read at all, else 0. Nothing is changed."""
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.dataset.check import check
    from polytone.train.dataset.report_files import write_report
    from polytone.train.dataset.terminal import show

    with Progress(Console(stderr=True)) as progress:
        result = check(files, held_out or [], options(read_home(home), base, region, presidio), progress)
    if report:
        write_report(report, result)
    if as_json:
        print(result.model_dump_json(by_alias=True))
    elif report:
        show(result, f"The full list is in {report / 'report.json'}.")
    else:
        show(result, "For the full list add --report FOLDER or --json.")
    if not result.passed:
        raise typer.Exit(ExitCode.FAILED)


@data_commands.command("clean")
def clean_data(
    files: FilesArgument,
    out: Annotated[Path, typer.Option(help="The new file, JSON lines; OUT.changes.jsonl beside it lists the changes.")],
    held_out: HeldOutOption = None,
    keep_personal: Annotated[bool, typer.Option("--keep-personal", help="Leave personal data as it is.")] = False,
    drop_personal_replies: Annotated[
        bool,
        typer.Option(
            "--drop-personal-replies",
            help="Drop rows with personal data in a reply; a voice trained on masked replies may say [EMAIL].",
        ),
    ] = False,
    force: OverwriteOption = False,
    region: RegionOption = None,
    presidio: PresidioOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a new file without broken rows, copies and rows that leaked from the held-out file, with damaged characters
    repaired and personal data masked: [EMAIL], [PHONE], [CARD], [IBAN].

    Of copies the first stays. Contradictions stay too: only you know which answer is right. The files you name are not
    changed, and cleaning the new file again changes nothing. Exit code 1 if no row is left; nothing is written then."""
    from polytone.train.dataset.clean import changes_path

    if keep_personal and drop_personal_replies:
        raise InputError(
            "--keep-personal: does not go with --drop-personal-replies. Leave one of them out.",
            code="options_conflict",
            param="keep_personal",
        )
    for target in (out, changes_path(out)):
        refuse_target("--out", target, [*files, *(held_out or [])], force)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.dataset.clean import clean

    personal: Personal = "keep" if keep_personal else "drop replies" if drop_personal_replies else "mask"
    with Progress(Console(stderr=True)) as progress:
        result = clean(files, held_out or [], out, options(read_home(home), None, region, presidio), personal, progress)
    print_cleaned(result, as_json)


@data_commands.command("split")
def split_data(
    files: FilesArgument,
    out_train: Annotated[Path, typer.Option(help="The new file to train on, JSON lines.")],
    out_held_out: Annotated[Path, typer.Option(help="The new file to measure on, JSON lines.")],
    share: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share of the rows to hold out.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows; the same draws the same.")] = 0,
    force: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Split conversations into a file to train on and one to measure on.

    Rows that belong together go to the same file: copies, rows with the same `conversation_id`, and rows that begin
    with the same question of five words or more. Exit code 1 if all rows belong together; nothing is written then."""
    for option, target in (("--out-train", out_train), ("--out-held-out", out_held_out)):
        refuse_target(option, target, files, force)
    if out_train.resolve() == out_held_out.resolve():
        raise InputError(
            "--out-held-out: is the same file as --out-train. Name another.",
            code="output_is_input",
            param="out_held_out",
        )
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.dataset.split import split
    from polytone.train.dataset.wording import counted

    with Progress(Console(stderr=True)) as progress:
        result = split(files, out_train, out_held_out, share, seed, progress)
    if as_json:
        written = {"out_train": str(out_train), "out_held_out": str(out_held_out)}
        print(json.dumps({**written, **vars(result), "share": share, "seed": seed}))
        return
    print(
        f"{out_train}: {counted(result.train, 'row')}\n{out_held_out}: {counted(result.held_out, 'row')} "
        f"({result.held_out / (result.train + result.held_out):.0%})"
    )


def refuse_target(option: str, target: Path, inputs: list[Path], force: bool) -> None:
    param = option.removeprefix("--").replace("-", "_")
    if any(target.resolve() == one.resolve() for one in inputs):
        raise InputError(
            f"{option}: {target} is one of the files to read. Name another.", code="output_is_input", param=param
        )
    if target.is_dir() or (target.exists() and not force):
        raise InputError(f"{option}: {target} exists. Name another, or add --force.", code="output_exists", param=param)


def options(home: Home, base: str | None, regions: list[str] | None, presidio: bool) -> "Options":
    from polytone.train.dataset.check import Options
    from polytone.train.dataset.lengths import counter
    from polytone.train.dataset.personal import REGIONS
    from polytone.train.dataset.presidio import presidio_finder

    unit, count = counter(home, base)
    return Options(unit, count, valid_regions(regions or list(REGIONS)), presidio_finder() if presidio else None)


def valid_regions(regions: list[str]) -> list[str]:
    from phonenumbers import SUPPORTED_REGIONS

    named = [region.upper() for region in regions]
    unknown = [region for region in named if region not in SUPPORTED_REGIONS]
    if unknown:
        raise InputError(
            f"--region: {', '.join(unknown)} is not a country code. Write two letters, such as DE.",
            code="region_unknown",
            param="region",
        )
    return named


def print_cleaned(result: "Cleaned", as_json: bool) -> None:
    from polytone.train.dataset.wording import counted

    if as_json:
        written = {"out": str(result.out), "changes": str(result.changes_file), "rows": result.rows}
        print(json.dumps({**written, "dropped": result.dropped, "changed": result.changed}))
        return
    print(
        f"{result.out}: {counted(result.rows, 'row')}; {counted(result.dropped, 'row')} dropped, "
        f"{result.changed:,} changed.\nAll changes: {result.changes_file}"
    )
